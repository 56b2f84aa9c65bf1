"""Production under all interleavings: two clients, the receiver, the reconciler, clicks, and kills at every step.

The state machine runs unchanged on an in-memory registry; hypothesis chooses which process makes its next call, and
which one is killed before it. At the end one reconciler runs, as it does every few minutes.
"""

from contextlib import suppress
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from microseg.errors import RegistryError, VersionNotFoundError
from microseg.registry.history import promotions
from microseg.registry.production import AuditInfo
from microseg.registry.transitions import ProductionState, advance, replay
from microseg.registry.version import PRODUCTION
from tests.microseg.registry.production_model import World

LAB_B = "production-lab_b"
VERSIONS = st.integers(1, 4)
ALIASES = st.sampled_from([PRODUCTION, LAB_B])


@dataclass(frozen=True)
class Click:
    """A person moved an alias.

    Args:
        excused: MLflow cannot tell this click from an alias that was not moved yet.
    """

    alias: str
    version: int | None
    entries: int
    excused: bool


class Interleavings(RuleBasedStateMachine):
    """Processes take turns; see the module."""

    @initialize(bad=st.frozensets(st.tuples(VERSIONS, st.none() | VERSIONS), max_size=6))
    def begin(self, bad: frozenset[tuple[int, int | None]]) -> None:
        self.world, self.clicks = World(bad), list[Click]()
        self.world.promote(1, PRODUCTION, "train") if (1, None) not in bad else None

    @precondition(lambda self: len(self.world.processes) < 4)
    @rule(version=VERSIONS, alias=ALIASES, by=st.sampled_from(["ann", "ben"]))
    def promote(self, version: int, alias: str, by: str) -> None:
        self.world.start(self.world.promote, version, alias, by)

    @precondition(lambda self: len(self.world.processes) < 4)
    @rule()
    def reconcile(self) -> None:
        self.world.start(self.world.reconcile)

    @precondition(lambda self: len(self.world.processes) < 4)
    @rule(alias=ALIASES)
    def roll_back(self, alias: str) -> None:
        def process() -> None:
            with suppress(
                VersionNotFoundError, RegistryError
            ):  # none before; or promoted at the same time, which it says
                self.world.production().roll_back(alias=alias, audit=AuditInfo("eve", "command", reason="worse"))

        self.world.start(process)

    @rule(version=st.none() | VERSIONS, alias=ALIASES)
    def click(self, version: int | None, alias: str) -> None:
        store = self.world.store
        now = replay(store.log).of(alias)
        pending = [entry for entry in store.log if not entry.applied and entry.alias == alias]
        excused = any(version == entry.shown for entry in pending if entry.action not in ("requested", "kept"))
        # moved away and back, unseen, while a later request is open
        excused |= now.request is not None and version == now.request.shown
        if store.alias.get(alias) != version:
            self.clicks.append(Click(alias, version, len(store.log), excused or version == now.active))
            store.move(alias, version)

    @precondition(lambda self: self.world.processes)
    @rule(index=st.integers(0, 3), calls=st.integers(1, 12))
    def run(self, index: int, calls: int) -> None:
        for _ in range(calls):
            if self.world.processes:
                self.world.step(index)

    @precondition(lambda self: self.world.processes)
    @rule(index=st.integers(0, 3))
    def kill(self, index: int) -> None:
        self.world.kill(index)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.finish()
        check_history(self.world)
        self.check_end()
        self.check_clicks()

    def finish(self) -> None:
        """The living processes end, then the reconciler runs."""
        while self.world.processes:
            self.world.step(0)
        self.world.reconcile()
        self.world.reconcile()

    def check_end(self) -> None:
        """Nothing is left to do, and the aliases show what is active."""
        world, state = self.world, replay(self.world.store.log)
        active = {alias: now.active for alias, now in state.aliases.items() if now.active is not None}
        assert world.production_aliases() == active
        assert all(now.request is None for now in state.aliases.values())
        assert all(now.result is None or now.result.applied for now in state.aliases.values())
        entries = len(world.store.log)
        world.reconcile()
        assert len(world.store.log) == entries

    def check_clicks(self) -> None:
        """Each click became a request, unless somebody moved the alias again before anyone saw it; and no other did."""
        log = self.world.store.log
        for entry in replay(log).entries:
            if entry.action == "requested" and entry.audit.via == "mlflow":
                assert any(
                    (click.alias, click.version) == (entry.alias, entry.version) and click.entries < entry.number
                    for click in self.clicks
                ), entry
        for number, click in enumerate(self.clicks):
            seen = any(
                (entry.alias, entry.version) == (click.alias, click.version)
                and entry.action in ("requested", "rolled back")  # the latter: to the same version at the same time
                for entry in replay(log).entries
                if entry.number > click.entries
            )
            waiting = replay(log[: click.entries]).of(click.alias).request
            open_before = waiting is not None and waiting.version == click.version
            again = any(later.alias == click.alias for later in self.clicks[number + 1 :])
            assert seen or again or click.excused or open_before, (click, log)


def check_history(world: World) -> None:
    """What is active was validated and judged against its predecessor; every request has a result and an author."""
    state, once_active = ProductionState(), dict[str, set[int | None]]()
    numbers = [entry.number for entry in world.store.log]
    assert numbers == list(range(1, len(numbers) + 1))
    for entry in world.store.log:
        later = advance(state, entry)
        if later is None:
            continue
        before, after = state.of(entry.alias), later.of(entry.alias)
        assert entry.after == before.last  # linear
        if entry.action == "promoted":
            assert entry.against == state.in_use(entry.alias)
            assert (entry.version, entry.against) in world.judged
            assert (entry.version, entry.against) not in world.bad
        elif entry.action == "rolled back":
            assert entry.version is None or entry.version in once_active[entry.alias]
            assert entry.audit.by == "eve"
        elif entry.action == "reverted":
            assert entry.audit.reason
        assert entry.action in ("promoted", "removed", "rolled back") or before.active == after.active
        if entry.audit.via == "command":
            assert entry.audit.by in ("train", "ann", "ben", "eve")
        once_active.setdefault(entry.alias, set()).add(after.active)
        state = later
    last = dict[str, str]()  # the outcome of the last request of each alias
    for promotion in reversed(promotions(state)):
        if promotion.audit.via == "command" and promotion.action == "promoted":
            assert promotion.audit.by
            assert promotion.audit.reason == f"{promotion.audit.by} promotes {promotion.version}"
        last[promotion.alias] = promotion.action
    assert "superseded" not in last.values()  # the last request is applied, or reverted with the reason
    assert "requested" not in last.values()


def check(examples: int, steps: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Interleavings,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


def test_no_interleaving_breaks_production() -> None:
    check(300, 30)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_no_interleaving_of_ten_thousand_breaks_production() -> None:
    check(10_000, 40)
