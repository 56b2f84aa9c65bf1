"""The machine: versions, the home, its disk."""

import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.version import Version

from flows.health.finding import Finding
from microseg.config.settings import Settings

__all__ = ["disk", "home", "packages"]

_ROOM = 5_000_000_000  # bytes


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


def home(settings: Settings) -> Iterator[Finding]:
    """Whether the home can be written, and its secrets are read by nobody else."""
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


def disk(settings: Settings) -> Iterator[Finding]:
    """Room for what is made."""
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
