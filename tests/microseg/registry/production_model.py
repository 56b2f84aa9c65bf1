"""An in-memory registry in which processes can be interleaved and killed between any two calls."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

from greenlet import getcurrent, greenlet

from microseg.errors import RegistryError, VersionNotFoundError
from microseg.registry.production import AuditInfo, Judgement, Production
from microseg.registry.transitions import Entry, ProductionState, replay
from microseg.registry.version import PRODUCTION, is_production, previous_of


class Killed(BaseException):
    """The process was killed."""


@dataclass
class MemoryStore:
    """A registry in memory; each call is preceded by a switch to the scheduler, where it runs in a process."""

    scheduler: greenlet = field(default_factory=getcurrent)
    log: list[Entry] = field(default_factory=list)
    alias: dict[str, int] = field(default_factory=dict)
    stages: set[int] = field(default_factory=set)
    notes: dict[int, str] = field(default_factory=dict)
    known_labs: set[str] = field(default_factory=lambda: {"lab_b"})

    def _step(self) -> None:
        if getcurrent() is not self.scheduler:
            self.scheduler.switch()

    def read(self) -> tuple[Entry, ...]:
        self._step()
        return tuple(self.log)

    def append(self, entry: Entry) -> None:
        self._step()
        self.log.append(replace(entry, number=len(self.log) + 1))

    def mark_applied(self, entry: Entry) -> None:
        self._step()
        self.log[entry.number - 1] = replace(self.log[entry.number - 1], applied=True)

    def begin_move(self, entry: Entry, mover: str) -> None:
        self._step()
        self._set_movers(entry, lambda movers: movers | {mover})

    def end_move(self, entry: Entry, mover: str) -> None:
        self._step()
        self._set_movers(entry, lambda movers: movers - {mover})

    def _set_movers(self, entry: Entry, change: Callable[[frozenset[str]], frozenset[str]]) -> None:
        stored = self.log[entry.number - 1]
        self.log[entry.number - 1] = replace(stored, movers=change(stored.movers))

    def aliases(self) -> dict[str, int]:
        self._step()
        return dict(self.alias)

    def staged(self) -> tuple[int, ...]:
        return tuple(self.stages)

    def move_alias(self, alias: str, expected: int | None, version: int | None) -> None:
        self._step()
        if self.alias.get(alias) == expected:
            self.move(alias, version)

    def move(self, alias: str, version: int | None) -> None:
        self.alias.pop(alias, None)
        if version is not None:
            self.alias[alias] = version

    def labs(self) -> set[str]:
        return self.known_labs

    def author(self, version: int) -> str | None:
        return f"clicker of {version}"

    def show(self, entry: Entry, audit: AuditInfo, previous: int | None) -> None:
        self._step()
        if entry.action in ("reverted", "ignored"):
            if entry.version is not None:
                self.notes[entry.version] = audit.reason
            return
        self.move(previous_of(entry.alias), previous)
        if entry.version is not None:
            self.notes.pop(entry.version, None)
        if entry.alias == PRODUCTION:
            self.stages &= {entry.version or 0}


def _find(ref: Any) -> Any:
    number = getattr(ref, "version", ref)
    if not isinstance(number, int):
        raise VersionNotFoundError(str(ref))
    return SimpleNamespace(version=number)


@dataclass(frozen=True)
class Click:
    """A person moved an alias.

    Args:
        alias: The alias.
        version: The version that it is on afterwards; None if it was removed.
        entries: Number of entries of the history before.
        excused: MLflow cannot tell this click from an alias that microseg is moving.
    """

    alias: str
    version: int | None
    entries: int
    excused: bool


@dataclass
class World:
    """Versions, their verdicts against the version in use, and processes that use the same registry.

    Args:
        bad: Pairs (version, version in use) that the gate refuses.
    """

    bad: frozenset[tuple[int, int | None]] = frozenset()
    store: MemoryStore = field(default_factory=MemoryStore)
    judged: set[tuple[int | None, int | None]] = field(default_factory=set)
    clicks: list[Click] = field(default_factory=list)
    processes: list[greenlet] = field(default_factory=list)

    def production(self) -> Production:
        """The registry as a process opens it."""
        return Production(self.store, _find)

    def judge(self, version: int | None, against: int | None, audit: AuditInfo) -> Judgement:
        """Validate and judge a version, which takes time."""
        self.store._step()
        self.judged.add((version, against))
        if version is not None and (version, against) in self.bad:
            return Judgement(False, replace(audit, gate="refused", reason=f"{version} is worse than {against}"))
        return Judgement(True, replace(audit, gate="accepted", reason=audit.reason or "better"))

    def reconcile(self) -> None:
        """What the receiver, the reconciler and batches do."""
        production = self.production()
        for request in production.observe():
            production.decide(request, partial(self._judge, request))

    def _judge(self, request: Entry, against: int | None) -> Judgement:
        return self.judge(request.version, against, request.audit)

    def roll_back(self, alias: str) -> None:
        """What `microseg rollback` does."""
        with suppress(VersionNotFoundError, RegistryError):  # none before; or promoted at the same time, which it says
            self.production().roll_back(alias=alias, audit=AuditInfo("eve", "command", reason="worse"))

    def click(self, version: int | None, alias: str) -> None:
        """What a person does in MLflow's page, unless the alias is there already."""
        if self.store.alias.get(alias) != version:
            state = replay(self.store.log)
            self.clicks.append(Click(alias, version, len(self.store.log), self._is_excused(state, alias, version)))
            self.store.move(alias, version)

    def _is_excused(self, state: ProductionState, alias: str, version: int | None) -> bool:
        """Whether MLflow, which has no compare-and-set, cannot tell the click from an alias that microseg moves."""
        now = state.of(alias)
        if version == now.active or version != now.shown(version):  # no change; or not moved yet
            return True
        if now.request is not None and version == now.request.shown:  # moved away and back, unseen
            return True
        active = None
        for entry in state.entries:  # one that a process is moving just now, or was killed while it did
            if entry.alias == alias and entry.action in ("promoted", "removed", "rolled back", "reverted"):
                active = active if entry.action == "reverted" else entry.version
                if entry.movers and version in (entry.shown, active):
                    return True
        return False

    def promote(self, version: int, alias: str, by: str) -> None:
        """What `microseg promote` does."""
        self.reconcile()
        production = self.production()
        against = production.state().in_use(alias)
        audit = AuditInfo(by, "command", reason=f"{by} promotes {version}")
        judgement = self.judge(version, against, audit)
        if judgement.accepted and production.state().of(alias).active != version:
            request = production.request(version, alias=alias, against=against, audit=judgement.audit)
            production.decide(request, lambda against: self.judge(version, against, audit))

    def start(self, action: Callable[..., Any], *arguments: Any) -> None:
        """Start a process; it stops before its first call to the registry."""
        process = greenlet(action)
        self.processes.append(process)
        process.switch(*arguments)
        self._reap()

    def step(self, index: int) -> None:
        """Let a process make one call."""
        self.processes[index % len(self.processes)].switch()
        self._reap()

    def run(self, process: greenlet, calls: int | None) -> bool:
        """Let a process make some calls; all by default.

        Returns:
            Whether it is not finished.
        """
        while not process.dead and (calls is None or calls > 0):
            process.switch()
            calls = None if calls is None else calls - 1
        self._reap()
        return not process.dead

    def kill(self, index: int) -> None:
        """Kill a process before its next call."""
        with suppress(Killed):
            self.processes[index % len(self.processes)].throw(Killed())
        self._reap()

    def _reap(self) -> None:
        self.processes = [process for process in self.processes if not process.dead]

    def production_aliases(self) -> dict[str, int]:
        return {alias: version for alias, version in self.store.alias.items() if is_production(alias)}
