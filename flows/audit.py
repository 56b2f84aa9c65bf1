"""Audit information of a change of production that a flow makes."""

import getpass

from prefect.runtime import deployment

from microseg.registry.gate import NOT_EVALUATED
from microseg.registry.production import AuditInfo

__all__ = ["audit_info"]


def audit_info(*, by: str | None = None, gate: str = NOT_EVALUATED, reason: str = "") -> AuditInfo:
    """Return who makes a change, and through which interface.

    Args:
        by: Name of the user; the user of this process if a command runs the flow and no name is given.
        gate: Status of the gate's decision.
        reason: Free text.
    """
    if deployment.id is not None:  # started in Prefect's page, by its API, or by an event
        return AuditInfo(by, "prefect", gate, reason)
    try:
        user = by or getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without a name
        user = None
    return AuditInfo(user, "command", gate, reason)
