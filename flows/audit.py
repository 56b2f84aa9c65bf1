"""Who changes what is in production, and which way: what the history is told."""

import getpass

from prefect.runtime import deployment

from microseg.registry.history import AuditInfo

__all__ = ["cause"]


def cause(*, by: str | None = None, gate: str = "not asked", reason: str = "") -> AuditInfo:
    """The cause of a change that a flow was asked for.

    Args:
        by: who asked; the user of this process by default, where a command asked.
        gate: the gate's verdict.
        reason: in words.
    """
    if deployment.id is not None:  # started in Prefect's page, by its API, or by an event
        return AuditInfo(by, "prefect", gate, reason)
    return AuditInfo(by or _user(), "command", gate, reason)


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without a name
        return None
