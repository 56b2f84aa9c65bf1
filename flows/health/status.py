"""What is in production, what is proposed, which labs there are, what runs next.

python -m flows.health.status
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from flows.cli.console import console, show_table
from flows.cli.options import cli_command
from flows.workspace import open_workspace
from microseg.config.settings import Settings, load_settings
from microseg.registry.gate import NOT_EVALUATED, Decision
from microseg.registry.production import PendingAliasChange
from microseg.registry.version import CANDIDATE, ModelVersion, production_of

__all__ = ["LabStatus", "Status", "command", "read_status"]

_BATCH = "segment-scheduled/segment-scheduled"
_ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass(frozen=True)
class LabStatus:
    """One lab.

    Attributes:
        lab: its name.
        versions: of its dataset.
        digest: of the newest.
        images: files of the newest.
        production: version used for its images; None when there is none.
        own: whether that version is this lab's alone.
        candidate: newest version adapted to it that was never in production, with the gate's verdict.
        landing: what became of its last delivery.
    """

    lab: str
    versions: int
    digest: str | None
    files: int
    production: int | None
    own: bool
    candidate: str | None
    landing: str


@dataclass(frozen=True)
class Status:
    """The whole of it.

    Attributes:
        production: version for all labs.
        candidate: version proposed.
        unsettled: aliases that somebody moved and nobody has looked at.
        labs: all that have a dataset, or a delivery.
        last_batches: when, and what was said of them; None without a Prefect server.
        next_batch: when; None without a Prefect server, or without a schedule.
    """

    production: int | None
    candidate: int | None
    pending: list[str]
    labs: list[LabStatus]
    last_batches: list[str] | None
    next_batch: str | None


def read_status(settings: Settings) -> Status:
    """Look everything up, and change nothing.

    Args:
        settings: where.

    Raises:
        RegistryError: the registry cannot be reached.
    """
    registry = open_workspace(settings).registry
    versions = registry.versions.all()
    promoted = {entry.version for entry in registry.production.history() if entry.state == "done"}
    store, landed = (
        open_workspace(settings).datasets,
        {landing.lab: landing for landing in open_workspace(settings).onboarding.read_all()},
    )
    names = {path.stem for path in (store.root / "history").glob("*.jsonl")} | landed.keys()
    production = open_workspace(settings).production()
    labs = []
    for lab in sorted(names):
        history, used, landing = store.history(lab), open_workspace(settings).production(lab), landed.get(lab)
        proposed = next((it for it in versions if it.tags.get("target") == lab and it.version not in promoted), None)
        labs.append(
            LabStatus(
                lab,
                len(history),
                history[-1].digest if history else None,
                history[-1].files if history else 0,
                used.version if used else None,
                used is not None and production_of(lab) in used.aliases,
                _with_status(proposed) if proposed else None,
                f"{landing.state}: {landing.message}".rstrip(": ") if landing else "",
            )
        )
    candidate = next((it.version for it in versions if CANDIDATE in it.aliases), None)
    last, following = _batches()
    pending = [_message(change) for change in registry.production.pending_changes()]
    return Status(production.version if production else None, candidate, pending, labs, last, following)


def _with_status(version: ModelVersion) -> str:
    decision = Decision.from_tags(version)
    return f"{version.version} ({decision.status if decision else NOT_EVALUATED})"


def _message(change: PendingAliasChange) -> str:
    requested = f"version {change.requested_version} requested" if change.requested_version else "alias removed"
    return f"{change.alias}: {requested} ({change.via}), {change.active_version or 'none'} active"


def _batches() -> tuple[list[str] | None, str | None]:
    """The last scheduled batches and the next one, as Prefect knows them."""
    if not PREFECT_API_URL.value():
        return None, None
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(_BATCH)
        except ObjectNotFound:
            return [], None

        def runs(states: tuple[str, ...], order: FlowRunSort, limit: int) -> list[Any]:
            wanted = {"deployment_id": {"any_": [deployment.id]}, "state": {"type": {"any_": list(states)}}}
            found = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(wanted), sort=order, limit=limit)
            return list(found)

        last = runs(_ENDED, FlowRunSort.START_TIME_DESC, 3)
        following = runs(("SCHEDULED",), FlowRunSort.EXPECTED_START_TIME_ASC, 1)
    told = [
        f"{it.start_time or it.expected_start_time:%Y-%m-%d %H:%M} {it.state.message or it.state_name}" for it in last
    ]
    return told, f"{following[0].expected_start_time:%Y-%m-%d %H:%M} UTC" if following else None


@cli_command(home="read")
def command(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Show production and candidates for each lab, the labs' dataset versions, the last batches and the next.

    Example: microseg status --json
    """
    status = read_status(load_settings())
    if as_json:
        typer.echo(json.dumps(asdict(status) | {"when": datetime.now(UTC).isoformat()}, indent=2))
        return
    console.print(f"In production: {_version(status.production)}; candidate: {_version(status.candidate)}")
    for line in status.pending:
        console.print(f"[yellow]Not looked at yet: {line}. microseg service validate-promotion does that.[/]")
    columns = ("lab", "dataset", "versions", "files", "uses", "newest candidate", "last delivery")
    rows = [
        (it.lab, (it.digest or "–")[:8], it.versions, it.files, _own(it), it.candidate or "–", it.landing or "–")
        for it in status.labs
    ]
    show_table("Labs", columns, rows)
    if status.last_batches is None:
        console.print("Batches: no Prefect server is named (PREFECT_API_URL).")
    else:
        for line in status.last_batches:
            console.print(f"Batch {line}", markup=False)
        console.print(f"Next batch: {status.next_batch or 'none is scheduled: microseg serve, then microseg doctor'}")


def _version(number: int | None) -> str:
    return f"version {number}" if number else "none"


def _own(lab: LabStatus) -> str:
    return "–" if lab.production is None else f"version {lab.production}{' (its own)' if lab.own else ''}"


if __name__ == "__main__":
    typer.run(command)
