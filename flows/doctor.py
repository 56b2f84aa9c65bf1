"""What fails silently, looked for: each fault with its remedy.

python -m flows.doctor
"""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import httpx
import typer
from packaging.version import Version
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from flows.command import microseg_command
from flows.console import console
from flows.settings import Settings, load_settings
from flows.stores import dataset_store, in_use, open_registry
from microseg.errors import MicrosegError
from microseg.registry import PRODUCTION, is_server

__all__ = ["Finding", "command", "examine"]

Level = Literal["good", "warning", "fault"]

_ROOM = 5_000_000_000  # bytes
_BATCH = "segment-waiting/microseg"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what.
        level: ``good``, ``warning`` (something is missing that some need) or ``fault``.
        sentence: what was found.
        remedy: what to do; empty where nothing is to be done.
    """

    subject: str
    level: Level
    sentence: str
    remedy: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Look at everything, one after the other; what cannot be looked at is a finding too.

    Args:
        settings: of the machine.
    """
    looks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        _packages, _home, _disk, _registry, _aliases, _webhook, _prefect, _schedules, _remote,
    )  # fmt: skip
    findings: list[Finding] = []
    for look in looks:
        try:
            findings += look(settings)
        except Exception as error:
            subject = look.__name__.lstrip("_")
            findings.append(Finding(subject, "fault", f"could not be looked at: {type(error).__name__}: {error}"))
    return findings


# ---- the machine


def _packages(_: Settings) -> Iterator[Finding]:
    """Versions that `pip check` finds fault with no part of."""
    rules = (
        ("fastapi", "<0.151", "with newer ones Prefect 3.8 does not start: unexpected keyword 'min_items'"),
        ("sqlalchemy", "<2.1", "with newer ones Prefect 3.8 starts, and never creates a scheduled run"),
        ("prefect", ">=3.8.8,<4", "the deployments were tried with these"),
        ("mlflow", ">=3.17,<4", "older ones send no word of moved aliases"),
        ("dvc", ">=3.67,<4", "the datasets were tried with these"),
    )
    for name, wanted, why in rules:
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, "fault", "is not installed", f"pip install '{name}{wanted}'")
            continue
        if _within(found, wanted):
            yield Finding(name, "good", found)
        else:
            yield Finding(name, "fault", f"{found} is installed; {why}", f"pip install '{name}{wanted}'")


def _within(found: str, wanted: str) -> bool:
    sides = {">=": lambda a, b: a >= b, "<": lambda a, b: a < b}
    parts = [re.fullmatch(r"(>=|<)(.+)", part) for part in wanted.split(",")]
    return all(part is not None and sides[part[1]](Version(found), Version(part[2])) for part in parts)


def _home(settings: Settings) -> Iterator[Finding]:
    root = settings.home.root
    probe = root / ".doctor"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        yield Finding("home", "fault", f"{root} cannot be written: {error}", "name another in MICROSEG_HOME")
        return
    yield Finding("home", "good", f"{root} can be written")
    secrets = settings.home.secrets
    if secrets.is_dir() and (loose := [it.name for it in secrets.iterdir() if it.stat().st_mode & 0o077]):
        yield Finding("secrets", "fault", f"others can read {', '.join(loose)}", f"chmod 600 {secrets}/*")


def _disk(settings: Settings) -> Iterator[Finding]:
    remote = settings.environment.dvc_remote
    places = {settings.home.root} | ({Path(remote)} if "://" not in remote and Path(remote).is_dir() else set())
    for place in sorted(places):
        free = shutil.disk_usage(place).free
        said = f"{free / 1e9:.0f} GB are free at {place}"
        if free < _ROOM:
            yield Finding(
                "disk", "fault", said, f"make room: at least {_ROOM / 1e9:.0f} GB are needed, or move the home"
            )
        else:
            yield Finding("disk", "good", said)


# ---- MLflow


def _registry(settings: Settings) -> Iterator[Finding]:
    uri = settings.environment.tracking_uri
    shown = re.sub(r"//[^/@]+@", "//***@", uri)
    try:
        open_registry(settings).versions()
    except MicrosegError as error:  # among them: hosts that the server was not told of
        yield Finding("MLflow", "fault", str(error), "see mlflow/README.md")
        return
    if not is_server(uri):
        yield Finding("MLflow", "good", f"{shown}: a database; no word comes of promotions, reconcile looks for them")
        return
    with _http() as client:
        served = client.get(f"{uri.rstrip('/')}/version").text.strip()
    yield Finding("MLflow", "good", f"{shown}, version {served}")
    if served and Version(served).release[:2] != Version(version("mlflow")).release[:2]:
        yield Finding(
            "MLflow",
            "warning",
            f"the server has {served}, this machine {version('mlflow')}",
            f"pip install mlflow=={served}, or update the server and run `mlflow db upgrade`",
        )


def _aliases(settings: Settings) -> Iterator[Finding]:
    """Aliases are case-sensitive; one that is spelled otherwise promotes nothing, and nobody is told."""
    registry = open_registry(settings)
    known = {path.stem for path in (dataset_store(settings).root / "history").glob("*.jsonl")}
    odd = False
    for one in registry.versions():
        for alias in one.aliases:
            plain = alias.strip().lower().replace("_", "-")
            lab = alias.removeprefix(f"{PRODUCTION}-")
            if alias.startswith(f"{PRODUCTION}-") and lab not in known:
                odd = True
                yield Finding(
                    "aliases",
                    "warning",
                    f"version {one.version} has {alias!r}, and there is no lab {lab!r}",
                    f"labs are {', '.join(sorted(known)) or 'none'}: set {PRODUCTION}-<one of them>, remove this",
                )
            elif plain.startswith("prod") and alias != PRODUCTION and not alias.startswith(f"{PRODUCTION}-"):
                odd = True
                yield Finding(
                    "aliases",
                    "fault",
                    f"version {one.version} has {alias!r}, which puts nothing into production",
                    f"set {PRODUCTION!r}, in lower case, and remove this one",
                )
    for drift in registry.drifts():
        odd = True
        yield Finding(
            "aliases",
            "warning",
            f"{drift.alias} was moved from version {drift.settled or '–'} to {drift.version or '–'}, and nobody has "
            "looked at it",
            "microseg rollout, or see that microseg serve runs",
        )
    if not odd:
        current = in_use(registry)
        yield Finding(
            "aliases", "good", f"version {current.version} is in production" if current else "none is set yet"
        )


def _webhook(settings: Settings) -> Iterator[Finding]:
    if not is_server(settings.environment.tracking_uri):
        return
    hooks = open_registry(settings).webhooks()
    if not hooks:
        yield Finding(
            "webhook", "warning", "MLflow tells nobody of promotions; the poll finds them later", "run microseg serve"
        )
        return
    url, active = hooks[0]
    if not active:
        yield Finding(
            "webhook", "fault", f"the webhook to {url} is switched off", "run microseg serve, which corrects it"
        )
        return
    try:
        with _http() as client:
            client.get(url.removesuffix("/mlflow") + "/health").raise_for_status()
    except httpx.HTTPError as error:
        yield Finding(
            "webhook",
            "fault",
            f"MLflow tells {url} of promotions, and nothing answers there ({type(error).__name__})",
            "run microseg serve, with MICROSEG_BRIDGE_URL as MLflow's server reaches it",
        )
        return
    # only the server knows whether it can read its secret: have it send one
    status, said = open_registry(settings).try_webhook()
    if status is not None and status < 400:
        yield Finding("webhook", "good", f"a signed delivery to {url} was believed")
    else:
        yield Finding(
            "webhook",
            "fault",
            f"a delivery to {url} failed: {status or ''} {said}".strip(),
            "start MLflow's server with the same MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY each time, and with "
            "MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https and MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true where needed; then "
            "restart microseg serve",
        )


# ---- Prefect


def _prefect(_: Settings) -> Iterator[Finding]:
    url = PREFECT_API_URL.value()
    if not url:
        yield Finding("Prefect", "warning", "no server is named: nothing runs by itself", "set PREFECT_API_URL")
        return
    with get_client(sync_client=True) as client:
        if (fault := client.api_healthcheck()) is not None:
            yield Finding("Prefect", "fault", f"{url} does not answer: {fault}", "start it, or correct PREFECT_API_URL")
            return
        served = client.api_version()
    same = Version(served).release[:2] == Version(version("prefect")).release[:2]
    said = f"{url}, version {served}"
    if same:
        yield Finding("Prefect", "good", said)
    else:
        yield Finding(
            "Prefect", "warning", f"{said}; this machine has {version('prefect')}", "give both the same version"
        )


def _schedules(settings: Settings) -> Iterator[Finding]:
    if not PREFECT_API_URL.value():
        return
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(_BATCH)
        except ObjectNotFound:
            yield Finding("schedules", "fault", "the flows are not registered with this server", "run microseg serve")
            return
        wanted = {"deployment_id": {"any_": [deployment.id]}, "state": {"type": {"any_": ["SCHEDULED"]}}}
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(wanted), limit=5)
        automations = client.read_automations()
    if deployment.paused or not any(it.active for it in deployment.schedules):
        yield Finding(
            "schedules", "fault", "the schedule of batches is paused", "start microseg serve, which resumes it"
        )
    elif not runs:
        yield Finding(
            "schedules",
            "fault",
            "batches have a schedule, and no run is scheduled",
            "if the server has just started, wait a minute; else look for errors in its log: with SQLAlchemy 2.1 it "
            "never schedules any, pip install 'sqlalchemy<2.1' there",
        )
    else:
        times = [run.expected_start_time for run in runs if run.expected_start_time is not None]
        late = [time for time in times if time < datetime.now(UTC) - timedelta(minutes=10)]
        if late:
            yield Finding("schedules", "fault", f"{len(late)} runs are late: nobody runs them", "run microseg serve")
        else:
            following = min(times)
            yield Finding("schedules", "good", f"the next batch is at {following:%Y-%m-%d %H:%M} UTC")
    named = {it.name for it in automations if it.enabled}
    missing = [name for name in ("microseg: a lab has landed", "microseg: a version was promoted") if name not in named]
    if missing:
        yield Finding("events", "fault", f"nothing waits for: {', '.join(missing)}", "restart microseg serve")
    else:
        yield Finding("events", "good", "landings and promotions start runs")
    folder = settings.home.root / settings.params.schedule.folder
    if not folder.is_dir():
        yield Finding(
            "schedules", "warning", f"the watched folder {folder} is not there", "make it, or correct schedule.folder"
        )


# ---- DVC


def _remote(settings: Settings) -> Iterator[Finding]:
    remote, store = settings.environment.dvc_remote, dataset_store(settings)
    shown = re.sub(r"//[^/@]+@", "//***@", remote)
    try:
        store.try_remote()
    except MicrosegError as error:
        yield Finding("DVC remote", "fault", str(error), "correct MICROSEG_DVC_REMOTE, or what it needs to be reached")
        return
    if "://" not in remote and Path(store.remote).stat().st_dev == settings.home.root.stat().st_dev:
        yield Finding(
            "DVC remote",
            "warning",
            f"{shown} can be written, and is on the same disk as the datasets: it is no backup",
            "name a share or a store in MICROSEG_DVC_REMOTE",
        )
    else:
        yield Finding("DVC remote", "good", f"{shown} can be written")


def _http() -> httpx.Client:
    return httpx.Client(timeout=10, trust_env=False)


@microseg_command
def command() -> None:
    """Look for what fails silently, each with its remedy; exit code 1 when there is a fault.

    Example: microseg doctor
    """
    marks = {"good": "[green]✓[/]", "warning": "[yellow]![/]", "fault": "[red]✗[/]"}
    findings = examine(load_settings())
    for finding in findings:
        console.print(f"{marks[finding.level]} [bold]{finding.subject}[/]:", end=" ")
        console.print(finding.sentence, markup=False, soft_wrap=True)
        if finding.remedy:
            console.print(f"    → {finding.remedy}", markup=False, soft_wrap=True)
    faults = sum(finding.level == "fault" for finding in findings)
    if faults:
        raise MicrosegError(f"{faults} of {len(findings)} things looked at are faults.")


if __name__ == "__main__":
    typer.run(command)
