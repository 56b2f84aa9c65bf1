"""Events that microseg emits to Prefect, and the triggers of the deployments that react to them."""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from prefect.client.orchestration import get_client
from prefect.events import DeploymentEventTrigger
from prefect.settings import PREFECT_API_URL

from flows.service.notifications import notify_people
from microseg.config.settings import Settings, load_settings
from microseg.datasets.incoming import IncomingDataset
from microseg.datasets.onboarding import OnboardingStore, new_onboarding
from microseg.errors import LabError
from microseg.files import is_below

__all__ = [
    "ALREADY_SUITED",
    "CANDIDATE_OUTDATED",
    "LAB_ARRIVED",
    "PROMOTION_REQUESTED",
    "PROMOTION_REVERTED",
    "REVIEW_REQUESTED",
    "TAG",
    "check_event_folder",
    "check_event_text",
    "emit",
    "emit_lab_arrived",
    "lab_arrived_trigger",
    "notify",
    "promotion_trigger",
]

_log = logging.getLogger(__name__)

TAG = "microseg"
"""Tag of microseg's deployments and of their runs."""

LAB_ARRIVED = "microseg.lab.arrived"
"""An incoming dataset is complete. Payload: ``folder`` (absolute path), ``lab``; resource ``microseg.lab.<lab>``."""

PROMOTION_REQUESTED = "microseg.promotion.requested"
"""An alias was changed in MLflow. Payload: ``alias``; resource ``microseg.alias.<alias>``."""

ALREADY_SUITED = "microseg.lab.already_suited"
"""The production model suits a new lab, and was not adapted to it. For automations that notify people. Payload:
``lab``, ``version``, ``message``; resource ``microseg.lab.<lab>``."""

REVIEW_REQUESTED = "microseg.review.requested"
"""The gate cannot tell whether a candidate is better: a person must look. For automations that notify people. Payload:
``version``, ``lab``, ``message``; resource ``microseg.version.<number>``."""

CANDIDATE_OUTDATED = "microseg.candidate.outdated"
"""Another promotion has made a candidate outdated: promoting it would lose a lab. For automations that notify people.
Payload: ``version``, ``lab``, ``message``; resource ``microseg.version.<number>``."""

PROMOTION_REVERTED = "microseg.promotion.reverted"
"""A requested version did not go to production, or an alias only resembles one of production. For automations that
notify people. Payload: ``alias``, ``version``, ``message``; resource ``microseg.alias.<alias>``."""


_TITLES = {
    ALREADY_SUITED: "production suits {lab} already",
    REVIEW_REQUESTED: "version {version} for {lab} needs review",
    CANDIDATE_OUTDATED: "the candidate for {lab} is outdated",
    PROMOTION_REVERTED: "a promotion was reverted",
}


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


def notify(event: str, resource: str, payload: dict[str, Any], *, identity: str) -> None:
    """Emit an event for people, if there is a Prefect server, and notify them; that it failed is logged.

    Args:
        event: See `emit`.
        resource: See `emit`.
        payload: What happened.
        identity: See `emit`.
    """
    if PREFECT_API_URL.value():
        try:
            emit(event, resource, payload, identity=identity)
        except httpx.HTTPError as error:
            _log.warning("The event %s could not be emitted: %s", event, error)
    title = _TITLES[event].format_map({"lab": "", "version": "", **payload})
    notify_people(load_settings(), f"microseg: {title}", str(payload.get("message", "")), identity=identity)


def check_event_folder(folder: Path, settings: Settings) -> None:
    """Check that an event may name a folder: it is below one of the allowed roots, also if it is a link.

    Args:
        folder: Folder of an incoming dataset.
        settings: State the allowed roots.

    Raises:
        LabError: It is not.
    """
    if not is_below(folder, settings.allowed_roots):
        roots = ", ".join(map(str, settings.allowed_roots))
        raise LabError(
            f"{folder}: expected a folder below {roots}, since anybody who reaches the Prefect server can send an "
            "event. Move it there, add its parent to data.allowed_roots in params.yaml, or run microseg onboard --here."
        )


def emit_lab_arrived(incoming: IncomingDataset, store: OnboardingStore) -> None:
    """Emit `LAB_ARRIVED` for a complete incoming dataset, and record its onboarding as pending.

    Args:
        incoming: The incoming dataset.
        store: States of the onboardings.

    Raises:
        httpx.HTTPError: The server cannot be reached.
    """
    check_event_text(str(incoming.folder))
    emit(LAB_ARRIVED, f"microseg.lab.{incoming.lab}", {"lab": incoming.lab, "folder": str(incoming.folder)})
    before = store.read(incoming.lab)
    if before is None:
        store.write(new_onboarding(incoming))
    elif not before.knows(incoming) or before.state == "incomplete":  # otherwise its run may have started already
        store.write(before.following(incoming))


def check_event_text(folder: str) -> None:
    """Check that a folder can be named in an event.

    Raises:
        LabError: Its name is not Unicode.
    """
    try:
        folder.encode()
    except UnicodeEncodeError:
        shown = folder.encode(errors="replace").decode()
        raise LabError(f"{shown}: expected the name of a folder in Unicode, got another encoding. Rename it.") from None


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
