"""The machine: versions, the home, its disk."""

import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile

from packaging.version import Version

from flows.health.finding import Finding
from microseg.config.settings import Settings
from microseg.errors import HomeError
from microseg.registry.relocation import outside_locations

__all__ = ["disk", "home", "packages"]

_MIN_FREE = 5_000_000_000  # bytes


def packages(_: Settings) -> Iterator[Finding]:
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
            yield Finding(name, "error", "is not installed", f"pip install '{name}{wanted}'")
            continue
        if _within(found, wanted):
            yield Finding(name, "ok", found)
        else:
            yield Finding(name, "error", f"{found} is installed; {why}", f"pip install '{name}{wanted}'")


def _within(found: str, wanted: str) -> bool:
    sides = {">=": lambda a, b: a >= b, "<": lambda a, b: a < b}
    parts = [re.fullmatch(r"(>=|<)(.+)", part) for part in wanted.split(",")]
    return all(part is not None and sides[part[1]](Version(found), Version(part[2])) for part in parts)


def home(settings: Settings) -> Iterator[Finding]:
    """Whether the home exists, can be written, is where it was last used, and keeps its secrets."""
    found, origin = settings.home, settings.environment.home_origin
    try:
        old = found.last_root()
    except HomeError as error:
        yield Finding("home", "error" if found.root.exists() else "warning", f"{error} ({origin})")
        return
    if old != found.root.resolve():
        yield Finding("home", "warning", f"{found.root} was moved or copied from {old}: its addresses are updated now")
    elif outside := outside_locations(found):
        yield Finding(
            "home",
            "error",
            f"MLflow's database in {found.root} refers to files elsewhere: {', '.join(outside[:3])}",
            "copy them into the home or keep them where they are; new files must not go there",
        )
    try:
        with TemporaryFile(dir=found.root):
            yield Finding("home", "ok", f"{found.root} can be written ({origin})")
    except OSError as error:
        yield Finding(
            "home", "error", f"{found.root} cannot be written: {error}", "set MICROSEG_HOME to another folder"
        )
    secrets = found.secrets
    if secrets.is_dir() and (loose := [it.name for it in secrets.iterdir() if it.stat().st_mode & 0o077]):
        yield Finding("secrets", "error", f"other users can read {', '.join(loose)}", f"chmod 600 {secrets}/*")


def disk(settings: Settings) -> Iterator[Finding]:
    """Whether there is enough free disk space."""
    remote = Path(settings.environment.dvc_remote)
    folders = {folder for folder in (settings.home.root, remote) if folder.is_dir()}
    for folder in sorted(folders):
        free = shutil.disk_usage(folder).free
        message = f"{free / 1e9:.0f} GB are free at {folder}"
        if free < _MIN_FREE:
            action = f"free at least {_MIN_FREE / 1e9:.0f} GB, or move the home"
            yield Finding("disk", "error", message, action)
        else:
            yield Finding("disk", "ok", message)
