"""Checks of this machine, for `flows.health.doctor`: packages, home, disk, the remote of the datasets."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

from packaging.specifiers import SpecifierSet

from flows.workspace import open_workspace
from microseg.config.settings import Settings
from microseg.errors import HomeError, MicrosegError
from microseg.escaping import mask_secrets
from microseg.registry.relocation import outside_locations

__all__ = ["Finding", "check_disk", "check_dvc_remote", "check_home", "check_packages"]

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
        message = f"{free / 1e9:.0f} GB are free at {folder}"
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
    except MicrosegError as error:
        yield Finding("DVC remote", "error", str(error), "correct MICROSEG_DVC_REMOTE, or the access to it")
        return
    if "://" not in address and Path(store.remote).stat().st_dev == settings.home.root.stat().st_dev:
        message = f"{shown} can be written, but is on the same disk as the datasets: it is not a backup"
        yield Finding("DVC remote", "warning", message, "set MICROSEG_DVC_REMOTE to a share or an object store")
    else:
        yield Finding("DVC remote", "ok", f"{shown} can be written")
