"""The DVC repository of a folder: created, configured and opened, with its errors as ours and its output collected."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from microseg.errors import RemoteUnavailableError, SupersededError, VersioningError
from microseg.files import write_text_file

__all__ = ["opened"]

_REMOTE = "store"
_IGNORED_BY_DVC = "# only the labs' datasets are versioned\n/*\n!/labs\n/labs/.*\n"
_LOGGERS = ("dvc", "dvc_data", "dvc_objects")
_PROGRESS_LOGGERS = ("dvc.progress", "dvc_data.callbacks")  # above the level ERROR there are no progress bars
_one_at_a_time = threading.RLock()  # DVC's loggers and console are global


@contextmanager
def opened(root: Path, remote: str, aim: str) -> Iterator[Any]:
    """Open the DVC repository of a folder, created when missing, without Git.

    Args:
        root: The repository's folder; it may be inside a Git checkout or another DVC repository.
        remote: Absolute path or URL of the default remote.
        aim: Start of the message of an error: what was expected.

    Yields:
        DVC's ``Repo``.

    Raises:
        RemoteUnavailableError: The remote, the cache or the disk cannot be reached, read or written now.
        SupersededError: As raised inside.
        VersioningError: A version is incomplete, or the remote is of an unknown kind or misconfigured.
    """
    from dvc.config import ConfigError
    from dvc.fs import RemoteMissingDepsError
    from dvc.repo import Repo

    with _one_at_a_time, _quiet() as messages:
        try:
            _configure(root, remote)
            repo = Repo(str(root))
            try:
                _check_kind(repo, remote)
                yield repo
            finally:
                repo.close()
        except Exception as error:  # exceptions of DVC and of its remotes share no base class
            refused = isinstance(error, VersioningError)
            what = str(error) if refused else f"{type(error).__name__}: {error}"
            cause = f" ({messages[0]})" if messages else ""
            lasting = refused or isinstance(error, ImportError | ConfigError | RemoteMissingDepsError)
            superseded = isinstance(error, SupersededError)
            raise (SupersededError if superseded else VersioningError if lasting else RemoteUnavailableError)(
                f"{aim}, got {what}{cause}. Check that {remote} is the right remote, can be reached and written, and "
                "that DVC's extra for its kind is installed."
            ) from error


def _check_kind(repo: Any, remote: str) -> None:
    """Reject a URL scheme that DVC does not know, which DVC treats as the name of a local folder."""
    scheme, separator, _ = remote.partition("://")
    if separator and scheme.lower() != "file" and repo.cloud.get_remote().fs.protocol == "local":
        raise VersioningError(f"an unknown kind of remote, {scheme}://")


def _utf8_config() -> Any:
    """DVC's ``Config``, which writes UTF-8: it reads that, but writes ASCII, so that a home with an accent fails."""
    from configobj import ConfigObj
    from dvc.config import Config, _pack_named

    class Utf8Config(Config):  # type: ignore[misc]
        def _save_config(self, level: str, conf_dict: Any) -> None:
            config = ConfigObj(_pack_named(conf_dict), encoding="utf-8")
            with Path(self.files[level]).open("wb") as file:
                config.write(file)

    return Utf8Config


def _configure(root: Path, remote: str) -> None:
    """Create the repository or update its configuration; other settings in it are not changed."""
    if "://" not in remote:
        Path(remote).mkdir(parents=True, exist_ok=True)
    dvc = root / ".dvc"
    dvc.mkdir(exist_ok=True)
    ignored = root / ".dvcignore"
    if not ignored.exists():
        write_text_file(ignored, _IGNORED_BY_DVC)
    wanted = {
        "no_scm": True,
        "analytics": False,
        "check_update": False,
        "remote": _REMOTE,
        "site_cache_dir": str(dvc / "tmp" / "site"),
    }
    config = _utf8_config()(str(dvc))
    stated = config.load_one("repo")
    if wanted.items() <= stated["core"].items() and stated["remote"].get(_REMOTE, {}).get("url") == remote:
        return
    with config.edit("repo") as edited:
        edited["core"].update(wanted)
        edited["remote"].setdefault(_REMOTE, {})["url"] = remote


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Collect DVC's error messages instead of printing them, and hide its progress bars."""
    from dvc.ui import ui

    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            cause = record.exc_info[1] if record.exc_info else None
            messages.append(f"{record.getMessage()}{f': {cause}' if cause else ''}")

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    bars = [logging.getLogger(name) for name in _PROGRESS_LOGGERS]
    levels = [logger.level for logger in bars]
    was_quiet = ui.error_console.quiet
    try:
        for logger in loggers:
            logger.handlers, logger.propagate = [Collector(logging.ERROR)], False
        for logger in bars:
            logger.setLevel(logging.CRITICAL)
        ui.error_console.quiet = True
        yield messages
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
        for logger, level in zip(bars, levels, strict=True):
            logger.setLevel(level)
        ui.error_console.quiet = was_quiet
