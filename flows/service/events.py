"""Events that microseg emits to Prefect, and the triggers of the deployments that react to them."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from prefect.client.orchestration import get_client
from prefect.events import DeploymentEventTrigger

from microseg.datasets.onboarding import IncomingDataset, Onboarding, OnboardingStore

__all__ = ["LAB_ARRIVED", "PROMOTION_REQUESTED", "emit", "emit_lab_arrived", "lab_arrived_trigger", "promotion_trigger"]

LAB_ARRIVED = "microseg.lab.arrived"
"""An incoming dataset is complete. Payload: ``folder`` (absolute path), ``lab``; resource ``microseg.lab.<lab>``."""

PROMOTION_REQUESTED = "microseg.promotion.requested"
"""An alias was changed in MLflow. Payload: ``alias``; resource ``microseg.alias.<alias>``."""


def emit(event: str, resource: str, payload: dict[str, Any], *, identity: str | None = None) -> None:
    """Emit an event to the Prefect server, and return when the server has it.

    Args:
        event: Name of the event, such as `LAB_ARRIVED`.
        resource: Resource that it concerns, such as ``microseg.lab.lab_c``.
        payload: Parameters of the deployments that it triggers.
        identity: UUID of the event, the same when it is emitted again.

    Raises:
        httpx.HTTPError: The server cannot be reached, or rejects the event.
    """
    body = {
        "id": identity or str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": event,
        "resource": {"prefect.resource.id": resource},
        "related": [],
        "payload": payload,
    }
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[body]).raise_for_status()


def emit_lab_arrived(incoming: IncomingDataset, store: OnboardingStore) -> None:
    """Emit `LAB_ARRIVED` for a complete incoming dataset, and record its onboarding as pending.

    Args:
        incoming: The incoming dataset.
        store: States of the onboardings.

    Raises:
        httpx.HTTPError: The server cannot be reached.
    """
    emit(LAB_ARRIVED, f"microseg.lab.{incoming.lab}", {"lab": incoming.lab, "folder": str(incoming.folder)})
    before = store.read(incoming.lab)
    if before is None or before.fingerprint != incoming.fingerprint:  # its run may have started already
        store.write(Onboarding(incoming.lab, str(incoming.folder), incoming.fingerprint, "pending"))


def lab_arrived_trigger() -> DeploymentEventTrigger:
    """Start one run for each incoming dataset."""
    return DeploymentEventTrigger(
        name="microseg: lab arrived",
        expect={LAB_ARRIVED},
        parameters={"folder": "{{ event.payload.folder }}"},
    )


def promotion_trigger() -> DeploymentEventTrigger:
    """Start one run for each changed alias."""
    return DeploymentEventTrigger(
        name="microseg: promotion requested",
        expect={PROMOTION_REQUESTED},
        parameters={"alias": "{{ event.payload.alias }}"},
    )
