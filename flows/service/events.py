"""What microseg tells Prefect, and what Prefect's deployments wait for."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from prefect.client.orchestration import get_client
from prefect.events import DeploymentEventTrigger

from microseg.datasets.onboarding import IncomingDataset, Onboarding, OnboardingStore

__all__ = ["LAB_ARRIVED", "PROMOTION_REQUESTED", "emit", "emit_lab_arrived", "lab_arrived_trigger", "promotion_trigger"]

LAB_ARRIVED = "microseg.lab.arrived"
"""A lab's files are all there. Payload: ``folder``, its full path; resource ``microseg.lab.<name>``."""

PROMOTION_REQUESTED = "microseg.promotion.requested"
"""Somebody moved an alias. Payload: ``alias``; resource ``microseg.alias.<alias>``."""


def emit(event: str, resource: str, payload: dict[str, Any], *, identity: str | None = None) -> None:
    """Tell Prefect's server of an event, and know that it has it.

    Args:
        event: Such as `LAB_ARRIVED`.
        resource: What it happened to, such as ``microseg.lab.lab_c``.
        payload: What deployments need to know.
        identity: A UUID, the same when it is told again.

    Raises:
        httpx.HTTPError: The server cannot be reached, or refuses.
    """
    said = {
        "id": identity or str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": event,
        "resource": {"prefect.resource.id": resource},
        "related": [],
        "payload": payload,
    }
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[said]).raise_for_status()


def emit_lab_arrived(delivery: IncomingDataset, kept: OnboardingStore) -> None:
    """Tell Prefect that a delivery is all there, and remember that it was told.

    Args:
        delivery: that has landed.
        kept: where that is remembered.

    Raises:
        httpx.HTTPError: the server cannot be reached.
    """
    payload = {"lab": delivery.lab, "folder": str(delivery.folder), "fingerprint": delivery.fingerprint}
    emit(LAB_ARRIVED, f"microseg.lab.{delivery.lab}", payload)
    before = kept.read(delivery.lab)
    if before is None or before.fingerprint != delivery.fingerprint:  # its run may have begun already
        kept.write(Onboarding(delivery.lab, str(delivery.folder), delivery.fingerprint, "announced"))


def lab_arrived_trigger() -> DeploymentEventTrigger:
    """Each landing starts one run."""
    return DeploymentEventTrigger(
        name="microseg: lab arrived",
        expect={LAB_ARRIVED},
        parameters={"folder": "{{ event.payload.folder }}"},
    )


def promotion_trigger() -> DeploymentEventTrigger:
    """Each moved alias starts one run."""
    return DeploymentEventTrigger(
        name="microseg: promotion requested",
        expect={PROMOTION_REQUESTED},
        parameters={"alias": "{{ event.payload.alias }}"},
    )
