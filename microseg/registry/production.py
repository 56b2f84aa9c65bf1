"""Which version is in production: requests, their decisions, and the history of every change.

An alias ``production…`` in MLflow names the requested version. The history names the active one, which was validated
and judged against the version in use before it. Where the two differ, somebody has set the alias: a request, which ends
as active or is reverted with the reason.

Every change is one entry of the history first, and then an alias. The entry counts if no other writer was first;
whoever comes next moves the alias if the writer was killed before. So one writer at a time decides, on whatever
machine, and no lock has to be released after a crash.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from microseg.errors import RegistryError, VersionNotFoundError
from microseg.registry.alias_moves import append_entry, apply_decision, full_audit, move_back
from microseg.registry.observation import Outcome, look
from microseg.registry.production_store import BY_TAG, REASON_TAG, ProductionStore
from microseg.registry.promotions import Promotion, promotions
from microseg.registry.transitions import Action, AuditInfo, Entry, PendingAliasChange, ProductionState, replay
from microseg.registry.version import PRODUCTION, ModelVersion, VersionRef, lab_of, previous_of, production_of

__all__ = ["BY_TAG", "REASON_TAG", "AuditInfo", "Judgement", "Outcome", "PendingAliasChange", "Production", "Promotion"]

_UNKNOWN = AuditInfo()
_ATTEMPTS = 50  # other writers were first


@dataclass(frozen=True)
class Judgement:
    """Whether a requested version goes to production.

    Args:
        accepted: Whether it does.
        audit: The gate's decision, and the reason.
    """

    accepted: bool
    audit: AuditInfo


class Production:
    """The versions in production, for all labs and for single labs.

    Args:
        store: The history and the aliases.
        find: Finds a version.
        labs: Returns the labs that exist besides those in the registry.
    """

    def __init__(
        self,
        store: ProductionStore,
        find: Callable[[VersionRef], ModelVersion],
        labs: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._store, self._find, self._labs = store, find, labs

    # ---- read

    def state(self) -> ProductionState:
        """Return the state that the history states."""
        return replay(self._store.read())

    def active(self, lab: str | None = None) -> ModelVersion:
        """Return the version for a lab's images: the lab's, if it has one, else that for all labs.

        Raises:
            VersionNotFoundError: There is neither.
        """
        number = self.state().in_use(production_of(lab))
        return self._find(PRODUCTION if number is None else number)

    def labs(self) -> frozenset[str]:
        """Return the labs that versions were trained with, that have their own version, or that exist elsewhere."""
        own = {lab_of(alias) for alias, now in self.state().aliases.items() if now.active is not None}
        return frozenset({*self._labs(), *self._store.labs(), *filter(None, own)})

    def history(self, alias: str | None = None) -> tuple[Promotion, ...]:
        """Return all requests with their results, rollbacks and kept versions, the newest first.

        Args:
            alias: Only those of this alias.
        """
        return tuple(entry for entry in promotions(self.state()) if alias in (None, entry.alias))

    def pending_changes(self) -> tuple[PendingAliasChange, ...]:
        """Return the undecided requests, also those that the history does not know; nothing is changed."""
        seen = look(self._store, self._labs)
        changes = {change.alias: change for change in seen.changes}
        for alias, now in seen.state.aliases.items():
            if now.request is not None and alias not in changes:
                via = now.request.audit.via
                changes[alias] = PendingAliasChange(alias, now.request.version, now.active, via)
        return tuple(changes[alias] for alias in sorted(changes) if not changes[alias].withdrawn)

    def unreported_aliases(self) -> frozenset[str]:
        """Return the aliases that only resemble one of production, and that `observe` has not recorded yet."""
        return frozenset(look(self._store, self._labs).unreported)

    # ---- requests

    def observe(self) -> tuple[Entry, ...]:
        """Record the changes of aliases as requests, and move the aliases that killed processes have not moved.

        Returns:
            The undecided requests, the oldest first.
        """
        for _ in range(_ATTEMPTS):
            seen = look(self._store, self._labs)
            results = [now.result for now in seen.state.aliases.values() if now.result is not None]
            if unfinished := [result for result in results if not result.applied]:
                for result in unfinished:
                    apply_decision(self._store, result)
                continue
            for change in seen.late:
                move_back(self._store, seen, change)
            for change in seen.changes:
                self._store.append(seen.observed(change, self._store.author))
            for alias, reason in seen.unreported.items():
                audit = AuditInfo(via="mlflow", reason=reason)
                entry = seen.entry(alias, "ignored", seen.aliases[alias], audit=audit)
                self._store.show(entry, audit, None)
                self._store.append(entry)
            if not seen.changes and not seen.late and not seen.unreported:
                requests = [now.request for now in seen.state.aliases.values() if now.request is not None]
                return tuple(sorted(requests, key=lambda request: request.number))
        raise _contended()

    def request(
        self, version: int, *, alias: str = PRODUCTION, against: int | None = None, audit: AuditInfo = _UNKNOWN
    ) -> Entry:
        """Request a version for production; it supersedes an undecided request, unless that is the same.

        Args:
            version: Number of the version.
            alias: ``production``, or ``production-<lab>`` for the images of one lab.
            against: The version in use that it was judged against.
            audit: Who, how and why.

        Returns:
            The request, to be decided by `decide`; if the process is killed before, `observe` returns it.
        """
        for _ in range(_ATTEMPTS):
            seen = look(self._store, self._labs)
            waiting = seen.state.of(alias).request
            if seen.changed(alias):
                self.observe()
            elif waiting is not None and (waiting.version, waiting.against, waiting.audit) == (version, against, audit):
                return waiting  # of a process that was killed, or of another one that does the same
            else:
                entry = seen.entry(alias, "requested", version, against=against, audit=audit)
                if (written := append_entry(self._store, entry)) is not None:
                    return written
        raise _contended()

    def decide(self, request: Entry, judge: Callable[[int | None], Judgement]) -> Outcome:
        """Decide on a request: the version is active afterwards, or reverted with the reason.

        Args:
            request: The request.
            judge: Validates the version, and judges it against the version in use, whose number is given (None: there
                is none). It is called again if another version is in use when it returns.

        Returns:
            How the request ended, perhaps by another process.
        """
        for _ in range(_ATTEMPTS):
            seen = look(self._store, self._labs)
            if (outcome := seen.outcome(request)) is not None:
                return outcome
            against = seen.state.in_use(request.alias)
            judgement = judge(against)
            applied: Action = "promoted" if request.version is not None else "removed"
            action: Action = applied if judgement.accepted else "reverted"
            if (outcome := self._end(request, action, against, judgement.audit)) is not None:
                return outcome
        raise _contended()

    def _end(self, request: Entry, action: Action, against: int | None, audit: AuditInfo) -> Outcome | None:
        """End a request; None if another version is in use than it was judged against."""
        for _ in range(_ATTEMPTS):
            seen = look(self._store, self._labs)
            if (outcome := seen.outcome(request)) is not None:
                return outcome
            if seen.changed(request.alias) or seen.moving(request.alias):
                self.observe()
            elif seen.state.in_use(request.alias) != against:
                return None
            else:
                self._decide(seen.decision(request, action, against, audit))
        raise _contended()

    def promote(self, ref: VersionRef, *, alias: str = PRODUCTION, audit: AuditInfo = _UNKNOWN) -> ModelVersion:
        """Promote a version that was validated to production, whatever is in production now.

        Neither the files nor the gate are evaluated here. The active version only loses its aliases of a candidate.

        Args:
            ref: The version.
            alias: ``production``, or ``production-<lab>`` for the images of one lab.
            audit: Who, how and why.

        Returns:
            The version, now in production.

        Raises:
            RegistryError: A later request superseded this one.
        """
        number = self._find(ref).version
        self.observe()
        state = self.state()
        now = state.of(alias)
        if now.active == number and now.request is None:
            if now.result is not None:
                self._store.show(now.result, full_audit(state, now.result), now.previous)
            return self._find(number)
        request = self.request(number, alias=alias, against=state.in_use(alias), audit=audit)
        if self.decide(request, lambda _: Judgement(True, audit)) != "active":
            raise RegistryError(f"the promotion of version {number} was superseded by a later one; see the history")
        return self._find(number)

    def roll_back(self, *, alias: str = PRODUCTION, audit: AuditInfo = _UNKNOWN) -> ModelVersion | None:
        """Return to the previous version.

        Afterwards there is no ``previous``: rolling back twice would otherwise return to the faulty version.

        Args:
            alias: ``production``, or ``production-<lab>``: if the lab has no previous version, its alias is removed,
                and the version for all labs is used again.
            audit: Who, how and why.

        Returns:
            The version, in production again; None if the lab uses the version for all labs again.

        Raises:
            VersionNotFoundError: There is no previous version.
            RegistryError: Another version was promoted at the same time.
        """
        for _ in range(_ATTEMPTS):
            self.observe()
            seen = look(self._store, self._labs)
            if not seen.moving(alias):
                break
        now = seen.state.of(alias)
        if now.previous is None and (alias == PRODUCTION or now.active is None):
            self._find(previous_of(alias))  # raises unless somebody has set this alias
            raise VersionNotFoundError(f"the history has no previous version of {alias}; promote one by its number")
        version = None if now.previous is None else self._find(now.previous)
        entry = seen.entry(alias, "rolled back", now.previous, against=now.active, audit=audit)
        if seen.changed(alias) or seen.moving(alias) or not self._decide(entry):
            raise RegistryError(
                f"{alias} was changed at the same time as it was to be rolled back; look at the history, and repeat it"
            )
        return None if version is None else self._find(version)

    def record_kept(self, version: ModelVersion, lab: str, *, audit: AuditInfo = _UNKNOWN) -> None:
        """Record that a version in production was not adapted to a lab, because it suits the lab."""
        for _ in range(_ATTEMPTS):
            seen = look(self._store, self._labs)
            own = seen.state.of(production_of(lab)).active == version.version
            alias = production_of(lab) if own else PRODUCTION
            if seen.state.of(alias).active != version.version:
                return  # another one was promoted meanwhile
            if append_entry(self._store, seen.entry(alias, "kept", version.version, audit=audit)) is not None:
                return
        raise _contended()

    # ---- helpers

    def _decide(self, entry: Entry) -> bool:
        """Write a decision and apply it; False if it is void."""
        if (written := append_entry(self._store, entry)) is None:
            return False
        apply_decision(self._store, written)
        return True


def _contended() -> RegistryError:
    return RegistryError("expected to change what is in production, other processes were always first; repeat it later")
