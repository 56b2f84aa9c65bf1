"""Runs an action in a copy of this process that is killed, or finds the disk full, at one of its writes."""

import errno
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

__all__ = ["Fault", "Result", "run_with_fault"]

Fault = Literal["none", "kill", "disk full"]

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_KILLED = 137
_CLIENT = (
    "create_run", "log_batch", "log_param", "log_metric", "log_inputs", "log_outputs", "set_tag", "set_terminated",
    "log_artifact", "log_artifacts", "log_text", "log_dict", "create_registered_model", "create_model_version",
    "update_model_version", "set_model_version_tag", "set_registered_model_alias", "delete_registered_model_alias",
    "set_registered_model_tag", "create_logged_model", "finalize_logged_model", "set_logged_model_tags",
)  # fmt: skip


class Result(NamedTuple):
    """What became of an action.

    Attributes:
        writes: Number of writes until it ended.
        killed: Whether it was killed.
        value: What it returned.
        error: What it raised.
    """

    writes: int
    killed: bool
    value: Any
    error: BaseException | None


def run_with_fault(action: Callable[[], Any], folder: Path, fault: Fault = "none", at: int = 0) -> Result:
    """Fork, and run an action.

    Args:
        action: What to do; its files are below the folder.
        folder: Writes elsewhere do not count.
        fault: ``kill``: the process ends at once, as by SIGKILL; ``disk full``: this and all later writes fail.
        at: Number of the write, from 1.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        code = 1
        try:
            code = _run(action, folder, fault, at, write)
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        content = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == _KILLED and fault == "kill":
        return Result(at, True, None, None)
    assert status == 0, f"the process ended with {status}"
    return Result(*pickle.loads(content))  # noqa: S301 (written by the fork of this process)


def _run(action: Callable[[], Any], folder: Path, fault: Fault, at: int, report: int) -> int:
    writes, armed, inside = 0, True, str(folder)

    def tick() -> None:
        nonlocal writes
        if not armed:
            return
        writes += 1
        if fault == "kill" and writes == at:
            os._exit(_KILLED)

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if not isinstance(path, str | bytes) or not isinstance(flags, int) or not flags & _WRITES:
                return
        elif event not in _CHANGES:
            return
        if os.fsdecode(args[0] if not isinstance(args[0], int) else "").startswith(inside):
            tick()
            adds = event in ("open", "os.mkdir", "os.link", "os.symlink")
            if armed and fault == "disk full" and writes >= at and adds:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(args[0]))

    if "mlflow" in sys.modules:
        _watch_mlflow(tick)
    sys.addaudithook(watch)
    value, error = None, None
    try:
        value = action()
    except Exception as raised:
        error = raised
    armed = False
    try:
        content = pickle.dumps((writes, False, value, error))
    except Exception:
        content = pickle.dumps((writes, False, None, RuntimeError(f"{type(error).__name__}: {error}")))
    with os.fdopen(report, "wb") as pipe:
        pipe.write(content)
    return 0


def _watch_mlflow(tick: Callable[[], None]) -> None:
    """Count each write of MLflow's client, before and after it, and each commit to its database."""
    from mlflow import MlflowClient
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def watched(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            tick()
            result = method(*args, **options)
            tick()
            return result

        return call

    for name in _CLIENT:
        setattr(MlflowClient, name, watched(getattr(MlflowClient, name)))
    event.listen(Engine, "commit", lambda _connection: tick())
