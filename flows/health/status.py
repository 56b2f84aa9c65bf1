"""Shows the home, production and candidate versions, the labs, and scheduled batches.

microseg status
"""

import json
import os
import re
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.console import console, show_table
from flows.cli.options import cli_command
from flows.workspace import active_version, open_workspace
from microseg.config.settings import Settings, load_settings
from microseg.errors import HomeNotFoundError
from microseg.registry.decision import NOT_EVALUATED, Decision
from microseg.registry.version import production_of

__all__ = ["SCHEDULED_DEPLOYMENT", "LabStatus", "Status", "command", "read_status"]

SCHEDULED_DEPLOYMENT = "segment-scheduled/segment-scheduled"
"""Name of the deployment that segments batches on a schedule."""

_ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass(frozen=True)
class LabStatus:
    """One lab.

    Attributes:
        lab: Its name.
        versions: Number of versions of its dataset.
        digest: Digest of the latest version.
        files: Number of files in the latest version.
        production: Version that segments its images; None when there is none.
        own: Whether that version is in production for this lab only.
        candidate: Latest version that was adapted to it and never promoted, with the status of the gate's decision.
        onboarding: State of the onboarding of the dataset that arrived last.
    """

    lab: str
    versions: int
    digest: str | None
    files: int
    production: int | None
    own: bool
    candidate: str | None
    onboarding: str


@dataclass(frozen=True)
class Status:
    """What `microseg status` shows.

    Attributes:
        home: Folder of microseg's home.
        home_origin: How the home was found.
        params_file: File of parameters; None for the defaults.
        home_exists: Whether there is a home yet.
        production: The active version for all labs, which batches use.
        pending: Requested versions that were not validated yet, which nothing uses.
        labs: All labs that have a dataset, or are being onboarded.
        last_batches: End and message of the last scheduled batches; None without a Prefect server.
        next_batch: Time of the next one; None without a Prefect server or a schedule.
    """

    home: str
    home_origin: str
    params_file: str | None
    home_exists: bool
    production: int | None = None
    pending: list[str] = field(default_factory=list)
    labs: list[LabStatus] = field(default_factory=list)
    last_batches: list[str] | None = None
    next_batch: str | None = None


def read_status(settings: Settings) -> Status:
    """Read the status; nothing is changed.

    Args:
        settings: Where to read it.

    Returns:
        The status; of a missing home, that there is nothing yet.

    Raises:
        HomeError: The home is of another format.
        RegistryError: The registry cannot be reached.
    """
    where: dict[str, Any] = {
        "home": str(settings.home.root),
        "home_origin": settings.environment.home_origin,
        "params_file": str(settings.params_file) if settings.params_file else None,
    }
    try:
        settings.environment.require_home()
    except HomeNotFoundError:
        return Status(**where, home_exists=False)
    workspace = open_workspace(settings)
    registry, store = workspace.read_registry(), workspace.datasets
    state = registry.production.state()
    promoted = {entry.version for entry in registry.production.history() if entry.state == "done"}
    onboardings = {onboarding.lab: onboarding for onboarding in workspace.onboarding.read_all()}
    labs = []
    for lab in sorted(set(store.known_labs) | onboardings.keys()):
        history, used, onboarding = store.history(lab), active_version(registry, lab), onboardings.get(lab)
        adapted = (it for it in registry.versions.adapted_to(lab) if it.version not in promoted)
        candidate, status = next(adapted, None), NOT_EVALUATED
        if candidate is not None and (decision := Decision.from_tags(candidate)):
            status = decision.status
        labs.append(
            LabStatus(
                lab=lab,
                versions=len(history),
                digest=history[-1].digest if history else None,
                files=history[-1].files if history else 0,
                production=used.version if used else None,
                own=state.of(production_of(lab)).active is not None,
                candidate=f"{candidate.version} ({status})" if candidate else None,
                onboarding=f"{onboarding.state}: {onboarding.message}".rstrip(": ") if onboarding else "",
            )
        )
    production = active_version(registry)
    last_batches, next_batch = _batches()
    return Status(
        **where,
        home_exists=True,
        production=production.version if production else None,
        pending=[
            f"{change.alias}: "
            + (f"version {change.requested_version} requested" if change.requested_version else "alias removed")
            + f" ({change.via}), {change.active_version or 'none'} active"
            for change in registry.production.pending_changes()
        ],
        labs=labs,
        last_batches=last_batches,
        next_batch=next_batch,
    )


def _batches() -> tuple[list[str] | None, str | None]:
    """The last scheduled batches and the time of the next one, from the Prefect server."""
    if not _may_have_server():
        return None, None
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        return None, None
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(SCHEDULED_DEPLOYMENT)
        except ObjectNotFound:
            return [], None

        def runs(states: tuple[str, ...], sort: FlowRunSort, limit: int) -> list[Any]:
            selected = {"deployment_id": {"any_": [deployment.id]}, "state": {"type": {"any_": list(states)}}}
            return list(
                client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(selected), sort=sort, limit=limit)
            )

        last = runs(_ENDED, FlowRunSort.START_TIME_DESC, 3)
        scheduled = runs(("SCHEDULED",), FlowRunSort.EXPECTED_START_TIME_ASC, 1)
    lines = [
        f"{run.start_time or run.expected_start_time:%Y-%m-%d %H:%M} {run.state.message or run.state_name}"
        for run in last
    ]
    return lines, f"{scheduled[0].expected_start_time:%Y-%m-%d %H:%M} UTC" if scheduled else None


def _may_have_server() -> bool:
    """Whether an address of Prefect may be set: only then Prefect, whose import takes seconds, is asked for it."""
    if "prefect" in sys.modules:
        return True
    if any(name.upper() in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH") for name in os.environ):
        return True
    profiles = Path(os.environ["PREFECT_HOME"]).expanduser() / "profiles.toml"
    if profiles.is_file() or Path("prefect.toml").is_file():
        return True
    marks = {".env": rb"prefect_", "pyproject.toml": rb"tool\s*\.\s*prefect|^\s*prefect\s*[.=]"}
    flags = re.IGNORECASE | re.MULTILINE
    return any(Path(name).is_file() and re.search(mark, Path(name).read_bytes(), flags) for name, mark in marks.items())


@cli_command(home="read")
def command(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show production and candidate versions, the labs and their datasets, and scheduled batches.

    Example: microseg status --json
    """
    status = read_status(load_settings())
    if as_json:
        typer.echo(json.dumps(asdict(status) | {"time": datetime.now(UTC).isoformat()}, indent=2))
        return
    missing = "" if status.home_exists else "; does not exist yet"
    console.print(f"Home:       {status.home} ({status.home_origin}{missing})", soft_wrap=True, markup=False)
    console.print(f"Parameters: {status.params_file or 'defaults'}", soft_wrap=True, markup=False)
    console.print(f"Production: {_version(status.production)} is active")
    for line in status.pending:
        console.print(f"[yellow]Requested:  {line}. Validate it: microseg service validate-promotion[/]")
    columns = ("lab", "dataset", "versions", "files", "production", "candidate", "onboarding")
    rows = [
        (it.lab, (it.digest or "–")[:8], it.versions, it.files, _production(it), it.candidate, it.onboarding or None)
        for it in status.labs
    ]
    if rows:
        show_table("Labs", columns, rows)
    else:
        console.print("No labs yet. Add one: microseg ingest FOLDER, or try microseg demo.")
    if status.last_batches is None:
        console.print("Scheduled batches: no Prefect server is set (PREFECT_API_URL).")
        return
    for line in status.last_batches:
        console.print(f"Batch {line}", markup=False)
    console.print(f"Next batch: {status.next_batch or 'none is scheduled; run microseg serve, then microseg doctor'}")


def _version(number: int | None) -> str:
    return f"version {number}" if number else "none"


def _production(lab: LabStatus) -> str | None:
    return None if lab.production is None else f"{lab.production}{' (own)' if lab.own else ''}"


if __name__ == "__main__":
    typer.run(command)
