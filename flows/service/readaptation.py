"""Candidates that another promotion has made outdated: people are notified, or the labs are adapted to again."""

from uuid import NAMESPACE_URL, uuid5

from prefect.settings import PREFECT_API_URL

from flows.service.events import CANDIDATE_OUTDATED, LAB_ARRIVED, emit, notify
from flows.workspace import open_workspace
from microseg.config.settings import Settings
from microseg.registry.candidates import OutdatedCandidate, outdated_candidates

__all__ = ["report_outdated_candidates"]


def report_outdated_candidates(settings: Settings) -> list[str]:
    """Report candidates whose promotion would lose a lab, also on their pages in MLflow.

    With ``promotion.adapt_again`` their labs are adapted to again.

    Each candidate is reported once for a version in production. The new candidate is adapted from the version in
    production, so to both labs.

    Args:
        settings: Settings of this run.

    Returns:
        What was reported, in sentences.
    """
    found = outdated_candidates(open_workspace(settings).registry)
    return [_report(candidate, settings) for candidate in found]


def _report(outdated: OutdatedCandidate, settings: Settings) -> str:
    message = str(outdated)
    open_workspace(settings).registry.mark_outdated(outdated.version, message)
    if settings.params.promotion.adapt_again and _restart(outdated, settings):
        message += " (it is adapted to again now)."
    payload = {"lab": outdated.lab, "version": outdated.version.version, "message": message}
    identity = str(uuid5(NAMESPACE_URL, f"{outdated.version.run_id}#{outdated.production.run_id}"))  # once
    notify(CANDIDATE_OUTDATED, f"microseg.version.{outdated.version.version}", payload, identity=identity)
    return message


def _restart(outdated: OutdatedCandidate, settings: Settings) -> bool:
    """Start the onboarding of the lab again, if it ended with this candidate."""
    store = open_workspace(settings).onboarding
    onboarding = store.read(outdated.lab)
    if onboarding is None or onboarding.state != "completed" or onboarding.candidate != outdated.version.version:
        return False
    if not PREFECT_API_URL.value():
        return False
    store.write(onboarding, state="pending", candidate=None)
    emit(LAB_ARRIVED, f"microseg.lab.{outdated.lab}", {"lab": outdated.lab, "folder": onboarding.folder})
    return True
