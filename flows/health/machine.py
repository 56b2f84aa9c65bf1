"""Checks of this machine, for `flows.health.doctor`: packages, home, disk, the remote of the datasets."""

import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

from packaging.specifiers import SpecifierSet
from prefect.settings import PREFECT_API_URL

from flows.workspace import open_workspace
from microseg.config.settings import Settings
from microseg.errors import HomeError, MicrosegError
from microseg.escaping import mask_secrets
from microseg.files import is_below
from microseg.registry.connection import is_server
from microseg.registry.relocation import outside_locations

__all__ = ["Finding", "check_disk", "check_dvc_remote", "check_home", "check_packages", "check_sharing"]

_MIN_FREE = 5_000_000_000  # bytes


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        check: What was checked.
        level: ``ok``, ``warning`` (something is missing that some installations need) or ``error``.
        message: What was found.
        action: What to do; empty where nothing is to be done.
    """

    check: str
    level: Literal["ok", "warning", "error"]
    message: str
    action: str = ""


def check_packages(_: Settings) -> Iterator[Finding]:
    """Versions that `pip check` accepts and that do not work."""
    rules = (
        ("fastapi", "<0.151", "with newer ones Prefect 3.8 does not start: unexpected keyword 'min_items'"),
        ("sqlalchemy", "<2.1", "with newer ones Prefect 3.8 starts, but never creates a scheduled run"),
        ("prefect", ">=3.8.8,<4", "the deployments were tested with these versions"),
        ("mlflow", ">=3.17,<4", "older ones send no webhook when an alias changes"),
        ("dvc", ">=3.67,<4", "the datasets were tested with these versions"),
    )
    for name, required, reason in rules:
        action = f"pip install '{name}{required}'"
        try:
            installed = version(name)
        except PackageNotFoundError:
            yield Finding(name, "error", "is not installed", action)
            continue
        if SpecifierSet(required).contains(installed, prereleases=True):
            yield Finding(name, "ok", installed)
        else:
            yield Finding(name, "error", f"{installed} is installed; {reason}", action)


def check_home(settings: Settings) -> Iterator[Finding]:
    """Whether the home exists, can be written, is where it was last used, and keeps its secrets."""
    home, origin = settings.home, settings.environment.home_origin
    try:
        last_root = home.last_root()
    except HomeError as error:
        yield Finding("home", "error" if home.is_format_1 or home.exists else "warning", f"{error} ({origin})")
        return
    if last_root != home.root.resolve():
        message = f"{home.root} was moved or copied from {last_root}: its addresses are updated now"
        yield Finding("home", "warning", message)
    elif outside := outside_locations(home):
        message = f"MLflow's database in {home.root} refers to files elsewhere: {', '.join(outside[:3])}"
        yield Finding("home", "error", message, "move these files into the home, or keep them available there")
    try:
        with TemporaryFile(dir=home.root):
            yield Finding("home", "ok", f"{home.root} can be written ({origin})")
    except OSError as error:
        yield Finding("home", "error", f"{home.root} cannot be written: {error}", "correct its permissions")
    secrets = home.secrets
    if secrets.is_dir() and (readable := [file.name for file in secrets.iterdir() if file.stat().st_mode & 0o077]):
        yield Finding("secrets", "error", f"other users can read {', '.join(readable)}", f"chmod 600 {secrets}/*")


def check_disk(settings: Settings) -> Iterator[Finding]:
    """Whether there is enough free disk space."""
    remote = Path(settings.environment.dvc_remote)
    for folder in sorted({folder for folder in (settings.home.root, remote) if folder.is_dir()}):
        free = shutil.disk_usage(folder).free
        message = f"{free / 1e9:.1f} GB are free at {folder}"
        if free < _MIN_FREE:
            yield Finding("disk", "error", message, f"free at least {_MIN_FREE / 1e9:.0f} GB, or move the home")
        else:
            yield Finding("disk", "ok", message)


def check_dvc_remote(settings: Settings) -> Iterator[Finding]:
    """Whether datasets can be pushed."""
    address, store = settings.environment.dvc_remote, open_workspace(settings).datasets
    shown = mask_secrets(address)
    try:
        store.check_remote()
        copied, lost = store.complete_remote()
    except MicrosegError as error:
        yield Finding("DVC remote", "error", str(error), "correct MICROSEG_DVC_REMOTE, or the access to it")
        return
    for (lab, digest), count in lost.items():
        message = f"{shown} lacks {count} files of version {digest} of {lab}, and so does this machine"
        action = "run microseg doctor on a machine that has them, or restore them from a backup"
        yield Finding("DVC remote", "error", message, action)
    if copied:
        message = f"{shown} lacked {copied} files of versions in the history: they were copied there from this machine"
        yield Finding("DVC remote", "warning", message, "find out who removed them")
    if "://" not in address and Path(store.remote).stat().st_dev == settings.home.root.stat().st_dev:
        message = f"{shown} can be written, but is on the same disk as the datasets: it is not a backup"
        yield Finding("DVC remote", "warning", message, "set MICROSEG_DVC_REMOTE to a share or an object store")
    else:
        yield Finding("DVC remote", "ok", f"{shown} can be written")


def check_sharing(settings: Settings) -> Iterator[Finding]:
    """Whether several machines share what they have to, and nothing else; see docs/operations/unattended.md."""
    environment, home, store = settings.environment, settings.home, open_workspace(settings).datasets
    several = "://" in store.remote or not is_below(Path(store.remote), [home.root])
    if not several:
        if is_server(environment.tracking_uri):
            message = "the remote of the datasets is in this home, so other machines cannot use the models of MLflow"
            action = "set MICROSEG_DVC_REMOTE to a share or an object store, if there are other machines"
            yield Finding("sharing", "ok", f"{message}: {action}")
        return
    outside = not is_below(settings.drop_folder, [home.root])
    if outside and is_below(settings.onboarding_records, [home.root]):
        message = f"the drop folder {settings.drop_folder} is shared, the states of onboardings are not"
        action = "set onboarding.records to a folder on the same share, if several machines serve it"
        yield Finding("sharing", "warning", message, action)
    if not is_server(environment.tracking_uri):
        message = "the datasets are shared, MLflow's database is not"
        yield Finding("sharing", "warning", message, "set MLFLOW_TRACKING_URI to a server, if there are other machines")
    facts = {
        "MLFLOW_TRACKING_URI": mask_secrets(environment.tracking_uri),
        "PREFECT_API_URL": mask_secrets(PREFECT_API_URL.value() or ""),
        "onboarding.drop_folder": str(settings.drop_folder),
        "schedule.folder": str(home.root / settings.params.schedule.folder),
        "onboarding.records": str(settings.onboarding_records),
        "MICROSEG_HOME": str(home.root),
    }
    name = f"{socket.gethostname()}-{sha256(str(home.root).encode()).hexdigest()[:8]}"
    machines = store.machines(name, facts)
    for other, stated in sorted(machines.items()):
        in_homes = ("onboarding.drop_folder", "schedule.folder", "onboarding.records")
        for key in set(facts) & set(stated) - {"MICROSEG_HOME"}:
            private = key in in_homes and all(
                is_below(Path(it[key]), [Path(it["MICROSEG_HOME"])]) for it in (facts, stated)
            )
            local = key == "MLFLOW_TRACKING_URI" and not is_server(facts[key])
            if facts[key] != stated[key] and facts[key] and stated[key] and not private and not local:
                message = f"{key} is {facts[key]} here and {stated[key]} on {other}, which has the same remote"
                yield Finding("sharing", "warning", message, "set it alike, or use another remote")
    yield Finding("sharing", "ok", f"machines and homes with this remote: {len(machines)}")
