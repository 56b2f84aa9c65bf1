"""DVC: where datasets are pushed."""

import re
from collections.abc import Iterator
from pathlib import Path

from flows.health.finding import Finding
from flows.workspace import open_workspace
from microseg.config.settings import Settings
from microseg.errors import MicrosegError

__all__ = ["remote"]


def remote(settings: Settings) -> Iterator[Finding]:
    """Whether datasets can be pushed."""
    address, store = settings.environment.dvc_remote, open_workspace(settings).datasets
    shown = re.sub(r"//[^/@]+@", "//***@", address)
    try:
        store.check_remote()
    except MicrosegError as error:
        yield Finding("DVC remote", "error", str(error), "correct MICROSEG_DVC_REMOTE, or what it needs to be reached")
        return
    if "://" not in address and Path(store.remote).stat().st_dev == settings.home.root.stat().st_dev:
        yield Finding(
            "DVC remote",
            "warning",
            f"{shown} can be written, and is on the same disk as the datasets: it is no backup",
            "name a share or a store in MICROSEG_DVC_REMOTE",
        )
    else:
        yield Finding("DVC remote", "ok", f"{shown} can be written")
