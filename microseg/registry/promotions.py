"""The history of production as it is shown: each request with its result."""

from dataclasses import dataclass, field, replace
from datetime import datetime

from microseg.registry.decision import NEEDS_REVIEW, OVERRIDDEN
from microseg.registry.transitions import AuditInfo, ProductionState
from microseg.registry.version import PRODUCTION

__all__ = ["Promotion", "promotions"]

_GATE_SAID = {OVERRIDDEN: " The gate had refused it.", NEEDS_REVIEW: " The gate could not tell: a person promoted it."}


@dataclass(frozen=True)
class Promotion:
    """A request with its result, or another change of production.

    Args:
        number: Place in the history; a request that was decided has that of the decision.
        time: Time of the registry's clock, in UTC; the order is that of the numbers.
        alias: ``production`` or ``production-<lab>``.
        action: ``"requested"`` (not decided yet), ``"promoted"``, ``"removed"``, ``"reverted"``, ``"superseded"`` (by a
            later request), ``"rolled back"``, ``"kept"`` (it suits a new lab) or ``"ignored"`` (the alias only
            resembles one of production).
        previous_version: The active version before; None if there was none.
        version: The requested version; None if the alias was removed.
        audit: Who, how and why.
    """

    number: int
    time: datetime
    alias: str
    action: str
    previous_version: int | None
    version: int | None
    audit: AuditInfo = field(default_factory=AuditInfo)

    @property
    def state(self) -> str:
        """``"running"`` until a request is decided; ``"done"``, or ``"failed"``: the active version did not change."""
        if self.action == "requested":
            return "running"
        return "failed" if self.action in ("reverted", "superseded", "ignored") else "done"

    @property
    def active_version(self) -> int | None:
        """The active version afterwards."""
        return self.version if self.state == "done" else self.previous_version

    def __str__(self) -> str:
        lab = self.alias.removeprefix(f"{PRODUCTION}-")
        scope = "in production" if self.alias == PRODUCTION else f"in production for {lab}"
        before = f"version {self.previous_version}" if self.previous_version else "no version"
        named = f"Version {self.version}" if self.version else f"The removal of the alias {self.alias}"
        match self.action:
            case "reverted":
                text = f"{named} was reverted, {before} stays {scope}."
            case "requested":
                text = f"{named} is requested, {before} is {scope}."
            case "superseded":
                text = f"{named} was superseded by a later request."
            case "ignored":
                text = f"The alias {self.alias} of version {self.version} was ignored."
            case "kept":
                text = f"{named} stays {scope}."
            case _ if self.version is None:
                text = f"The alias {self.alias} was removed from {before}."
            case _:
                text = f"{named} is {scope}, before it was {before}."
                text += _GATE_SAID.get(self.audit.gate, "")
        return f"{text} {self.audit.reason}".rstrip()


def promotions(state: ProductionState) -> tuple[Promotion, ...]:
    """Return the history as it is shown: each request with its result, the newest first."""
    shown: dict[int, Promotion] = {}
    active: dict[str, int | None] = {}
    waiting: dict[str, int] = {}  # number of the undecided request of an alias
    for entry in state.entries:
        alias, audit = entry.alias, entry.audit
        if entry.action not in ("kept", "ignored") and (asked := shown.get(waiting.pop(alias, 0))) is not None:
            if entry.request == asked.number:
                audit = replace(asked.audit, gate=audit.gate, reason=audit.reason)
                del shown[asked.number]
            else:
                shown[asked.number] = replace(asked, action="superseded")
        shown[entry.number] = Promotion(
            entry.number, entry.time, alias, entry.action, active.get(alias), entry.version, audit
        )
        if entry.action == "requested":
            waiting[alias] = entry.number
        elif entry.action in ("promoted", "removed", "rolled back"):
            active[alias] = entry.version
    return tuple(shown[number] for number in sorted(shown, reverse=True))
