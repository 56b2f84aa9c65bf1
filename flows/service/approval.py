"""Who decides on a candidate that a landing has made: a person in MLflow's page, one in Prefect's, or the gate."""

from datetime import timedelta

from prefect import get_run_logger, suspend_flow_run
from prefect.artifacts import create_markdown_artifact
from prefect.input import RunInput
from prefect.runtime import deployment
from pydantic import Field

from flows.promote import promote
from microseg.config.settings import Settings
from microseg.registry.verdict import stored_verdict
from microseg.registry.version import ModelVersion

__all__ = ["Approval", "decide_on"]

_PATIENCE = timedelta(days=90)


class Approval(RunInput):
    """What a person is asked in Prefect's page."""

    promote: bool = Field(False, title="Promote it", description="Put the candidate into production.")
    by: str = Field("", title="Your name", description="For the history.")
    reason: str = Field("", title="Why", description="For the history; asked for where the gate refuses.")


def decide_on(candidate: ModelVersion, lab: str, settings: Settings, changes: tuple[str, ...]) -> str:
    """Have a candidate decided on, as ``promotion.approval`` says.

    Args:
        candidate: judged.
        lab: that it was adapted to.
        settings: of this run.
        changes: see the flows.

    Returns:
        What was decided, or who is to decide.
    """
    message = _decide(candidate, lab, settings, changes)
    create_markdown_artifact(f"# {lab}\n\n{message}", key="decision")
    return message


def _decide(candidate: ModelVersion, lab: str, settings: Settings, changes: tuple[str, ...]) -> str:
    own = lab if settings.params.promotion.per_lab else None
    report = stored_verdict(candidate)
    verdict = f"The gate {report.sentence}." if report else ""
    if settings.params.promotion.approval == "gate":
        result = promote(str(candidate.version), own, by="the gate", changes=changes)
        done = "is in production" if result.accepted else "stays a candidate"
        return f"Version {candidate.version} {done}: the gate decides here. {' '.join(result.reasons)}"
    if settings.params.promotion.approval == "prefect" and deployment.id is not None:
        return _ask(candidate, own, verdict, changes)
    alias = f"production-{lab}" if own else "production"
    return (
        f"Version {candidate.version} is the candidate for {lab}. {verdict} Look at it in MLflow's page, and set the "
        f"alias {alias} on it to promote it."
    )


def _ask(candidate: ModelVersion, lab: str | None, verdict: str, changes: tuple[str, ...]) -> str:
    """End the run until a person has decided; it then goes on from the top, and finds everything done up to here."""
    create_markdown_artifact(
        f"# Version {candidate.version}: to be decided\n\n{verdict}\n\n{candidate.description}", key="to-decide"
    )
    get_run_logger().info("Version %s waits for a decision: Resume, on this page.", candidate.version)
    said = suspend_flow_run(
        wait_for_input=Approval.with_initial_data(
            description=f"# Promote version {candidate.version}?\n{verdict} The run's artifacts show it beside the "
            "production model.",
            promote=False,
        ),
        timeout=int(_PATIENCE.total_seconds()),
        key=f"approval-{candidate.version}",
    )
    by = said.by or None
    if not said.promote:
        return f"Version {candidate.version} was declined{f' by {by}' if by else ''}. {said.reason}".strip()
    result = promote(str(candidate.version), lab, said.reason or "approved in Prefect", by, changes)
    return f"Version {result.production} is in production: approved{f' by {by}' if by else ''}. {said.reason}".strip()
