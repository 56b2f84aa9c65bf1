"""Who decides on a new candidate: a person in MLflow's page, a person in Prefect's page, or the gate."""

from datetime import timedelta
from uuid import NAMESPACE_URL, UUID, uuid5

from prefect import get_run_logger, suspend_flow_run
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.input import RunInput
from prefect.runtime import deployment
from prefect.settings import PREFECT_API_URL
from pydantic import Field

from flows.promote import promote
from flows.service.events import REVIEW_REQUESTED, notify
from flows.service.notifications import notify_people
from flows.telemetry import attempt
from flows.workspace import open_workspace
from microseg.config.settings import Settings
from microseg.datasets.onboarding import Onboarding
from microseg.registry.decision import NEEDS_REVIEW, REFUSED, Decision
from microseg.registry.evidence_store import DECISION_PAGE
from microseg.registry.version import ModelVersion, production_of

__all__ = ["Approval", "awaits_approval", "request_approval"]

_TIMEOUT = timedelta(days=90)


class Approval(RunInput):
    """The input of a person in Prefect's page."""

    promote: bool = Field(False, title="Promote", description="Promote the candidate to production.")
    by: str = Field("", title="Your name", description="For the history.")
    reason: str = Field("", title="Reason", description="For the history; required if the gate refuses or cannot tell.")


def request_approval(candidate: ModelVersion, lab: str, settings: Settings, changes: tuple[str, ...]) -> str:
    """Request a decision on a candidate, from whom ``promotion.approval`` names; from a person if the gate cannot tell.

    Args:
        candidate: The evaluated candidate.
        lab: The lab that it was adapted to.
        settings: Settings of this run.
        changes: Parameters that override those of params.yaml, ``section.name=value``.

    Returns:
        The decision, or who has to decide, in a sentence.
    """
    message = _request(candidate, lab if settings.params.promotion.per_lab else None, lab, settings, changes)
    attempt(show_decision, message, candidate, lab, settings)
    return message


def show_decision(message: str, candidate: ModelVersion, lab: str, settings: Settings) -> None:
    """Show the message in Prefect, with a link to the decision page."""
    page = open_workspace(settings).registry.attachments.page(candidate, DECISION_PAGE)
    link = f"\n\n[Decision page of version {candidate.version}]({page})" if page else ""
    create_markdown_artifact(f"# {lab}\n\n{message}{link}", key="decision")


def awaits_approval(onboarding: Onboarding) -> bool:
    """Whether the run that asked a person still waits for the answer; not if it was cancelled or deleted."""
    if onboarding.flow_run_id is None or not PREFECT_API_URL.value():
        return True
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(UUID(onboarding.flow_run_id)).state
        except ObjectNotFound:
            return False
    return state is None or not state.is_final()


def _request(candidate: ModelVersion, scope: str | None, lab: str, settings: Settings, changes: tuple[str, ...]) -> str:
    approval, decision = settings.params.promotion.approval, Decision.from_tags(candidate)
    if approval == "gate":
        decision = decided = promote(str(candidate.version), scope, by="the gate", changes=changes)
        if decided.verdict != NEEDS_REVIEW:
            result = "is in production" if decided.promoted else "stays a candidate"
            rules = " ".join(rule.message for rule in decided.rules)
            step = "" if decided.promoted else f" {decided.next_step(scope)}"
            return f"Version {candidate.version} {result}, by the decision of the gate. {rules}{step}"
    refused = decision is not None and decision.verdict == REFUSED
    gate = str(decision) if decision else "The gate was not evaluated on it."
    if decision and decision.verdict == NEEDS_REVIEW:
        gate = " ".join((gate, *decision.reasons))
        payload = {"version": candidate.version, "lab": lab, "message": gate}
        identity = str(uuid5(NAMESPACE_URL, f"{candidate.uri}#{candidate.run_id}"))  # once, also if the run is resumed
        notify(REVIEW_REQUESTED, f"microseg.version.{candidate.version}", payload, identity=identity)
    else:
        title = f"microseg: version {candidate.version} for {lab} waits for a decision"
        what = (
            f"{gate} Compare it with production in MLflow, and promote or reject it (promotion.approval: {approval})."
        )
        notify_people(settings, title, what, identity=f"{candidate.uri}#{candidate.run_id}")
    if approval != "mlflow" and deployment.id is not None:
        return _ask_in_prefect(candidate, scope, gate, changes)
    nothing = "Nothing needs to be done; to promote it all the same" if refused else "To promote it"
    return (
        f"Version {candidate.version} is the candidate for {lab}. {gate} {nothing}, compare it with production on its "
        f"decision page, and set the alias {production_of(scope)} on it in MLflow."
    )


def _ask_in_prefect(candidate: ModelVersion, scope: str | None, gate: str, changes: tuple[str, ...]) -> str:
    """Suspend the run until a person has decided; it then starts again, and skips the steps that are done."""
    attempt(
        create_markdown_artifact,
        f"# Version {candidate.version}: approval requested\n\n{gate}\n\n{candidate.description}",
        key="approval",
    )
    get_run_logger().info("Version %s needs an approval: press Resume on this page.", candidate.version)
    answer = suspend_flow_run(
        wait_for_input=Approval.with_initial_data(
            description=f"# Promote version {candidate.version}?\n{gate} The artifacts of this run compare it with the "
            "production model.",
            promote=False,
        ),
        timeout=int(_TIMEOUT.total_seconds()),
        key=f"approval-{candidate.version}",
    )
    by = f" by {answer.by}" if answer.by else ""
    if not answer.promote:
        return f"Version {candidate.version} was rejected{by}. {answer.reason}".strip()
    decision = promote(
        str(candidate.version), scope, answer.reason or "approved in Prefect", answer.by or None, changes
    )
    if not decision.promoted:
        return (
            f"Version {candidate.version} was approved{by}, but another version went into production meanwhile. "
            f"{decision} {' '.join(decision.reasons)}"
        )
    return f"Version {candidate.version} is in production: approved{by}. {answer.reason}".strip()
