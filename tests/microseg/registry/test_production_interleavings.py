"""Production under interleavings: two clients, the receiver, the reconciler, clicks, and kills at every step.

The state machine runs unchanged on an in-memory registry. Hypothesis chooses which process makes its next call, and
which one is killed before it; and all interleavings of two processes are tried in which one of them is interrupted
once. At the end one reconciler runs, as it does every few minutes.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from itertools import count
from textwrap import dedent
from typing import Literal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from microseg.errors import RegistryError
from microseg.registry import observation, transitions
from microseg.registry.observation import Seen
from microseg.registry.production import Production
from microseg.registry.transitions import ProductionState
from microseg.registry.version import PRODUCTION
from tests.microseg.registry.production_invariants import finish
from tests.microseg.registry.production_model import MemoryStore, World

LAB_B = "production-lab_b"
VERSIONS = st.integers(1, 4)
ALIASES = st.sampled_from([PRODUCTION, LAB_B])


class Interleavings(RuleBasedStateMachine):
    """Processes take turns; see the module."""

    @initialize(bad=st.frozensets(st.tuples(VERSIONS, st.none() | VERSIONS), max_size=6))
    def begin(self, bad: frozenset[tuple[int, int | None]]) -> None:
        self.world = World(bad)
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
        self.world.start(self.world.roll_back, alias)

    @rule(version=st.none() | VERSIONS, alias=ALIASES)
    def click(self, version: int | None, alias: str) -> None:
        self.world.click(version, alias)

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
        if hasattr(self, "world"):
            finish(self.world)


def check(examples: int, steps: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Interleavings,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
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


# ---- all interleavings of two processes

Start = Callable[[World], None]
STARTS: dict[str, Start] = {
    "promotion": lambda world: world.start(world.promote, 2, PRODUCTION, "ann"),
    "promotion for a lab": lambda world: world.start(world.promote, 2, LAB_B, "ben"),
    "rollback": lambda world: world.start(world.roll_back, PRODUCTION),
    "rollback of a lab": lambda world: world.start(world.roll_back, LAB_B),
    "validation of a click": lambda world: world.start(world.reconcile),
    "click": lambda world: world.click(3, PRODUCTION),
    "click for a lab": lambda world: world.click(3, LAB_B),
}
FIRST = [name for name in STARTS if not name.startswith("click")]


Way = Literal["once", "both", "killed", "turns"]
"""``once``: the first process is interrupted, the second one is not; ``both``: the second one, too, and the first ends
before it; ``killed``: the first one is killed some calls after it was interrupted; ``turns``: the second one, too,
while the first one reads the history and the aliases, and ends before it."""


def begun(first: str) -> World:
    """Version 4 is in production, 1 was before; a lab has version 1, if it is to be rolled back."""
    world = World(frozenset({(2, 3), (3, 2)}))
    for version, alias in ((1, PRODUCTION), (4, PRODUCTION), *[(1, LAB_B)] * (first == "rollback of a lab")):
        world.promote(version, alias, "train")
    if first == "validation of a click":
        world.click(2, PRODUCTION)
        world.click(2, LAB_B)
    return world


def interrupted(first: str, second: str, way: Way) -> Iterator[tuple[int, int]]:
    """Interrupt a process before each of its calls, run another one, then the rest; check what must hold then.

    Yields:
        The calls of the first before it was interrupted; the calls after which the other was interrupted, or the first
        one killed.
    """
    for before in count():
        for later in count(1):
            world = begun(first)
            STARTS[first](world)
            one = world.processes[0]
            if not all(world.run(one, 1) for _ in range(before)):
                return
            STARTS[second](world)
            other = world.processes[-1]
            ended = not world.run(other, later if way in ("both", "turns") else None)
            if way == "turns":
                world.run(one, 2)
                world.run(other, None)
            if way == "killed":
                ended = not world.run(one, later)
                if not ended:
                    world.kill(0)
            finish(world)
            yield before, later
            if ended or way == "once":
                break


@pytest.mark.parametrize(("first", "second"), [("rollback", "promotion"), ("promotion", "rollback")])
def test_no_rollback_is_lost_while_a_promotion_is_applied(first: str, second: str) -> None:
    assert sum(1 for _ in interrupted(first, second, "turns")) > 100


@pytest.mark.parametrize("first", FIRST)
def test_no_interruption_breaks_production(first: str) -> None:
    assert sum(1 for second in STARTS for _ in interrupted(first, second, "once")) > 50


@pytest.mark.long
@pytest.mark.parametrize("way", ["both", "killed", "turns"])
@pytest.mark.parametrize("first", FIRST)
def test_no_two_interruptions_break_production(first: str, way: Way) -> None:
    assert sum(1 for second in STARTS for _ in interrupted(first, second, way)) > 300


# ---- planted faults: each is found

Fault = tuple[object, str, str, str, tuple[str, str, Way]]
FAULTS: dict[str, Fault] = {
    "a verdict for a lab does not expire when production for all labs changes": (
        transitions, "_advance", "entry.against != state.in_use(entry.alias)", "False",
        ("promotion for a lab", "rollback", "once"),
    ),
    "a process does not judge again when production for all labs changes": (
        Production, "_end", "seen.state.in_use(request.alias) != against", "False",
        ("promotion for a lab", "rollback", "once"),
    ),
    "a lab without a version of its own has none in use": (
        ProductionState, "in_use", "if own is None else own", "if own is None and alias == PRODUCTION else own",
        ("promotion for a lab", "promotion", "once"),
    ),
    "a rollback wins over a click": (
        Production, "roll_back", "seen.changed(alias) or seen.moving(alias)", "seen.moving(alias)",
        ("rollback", "click", "once"),
    ),
    "an entry of a writer who knew less counts": (
        transitions, "_advance", "entry.after != now.last", "False",
        ("promotion", "rollback", "once"),
    ),
    "a decision is applied over a later click": (
        MemoryStore, "move_alias", "self.alias.get(alias) == expected", "True",
        ("promotion", "click", "once"),
    ),
    "what a slow process applies after a later decision is a request": (
        observation, "alias_changes", "if version == shown != now.active", "if False",
        ("promotion", "rollback", "killed"),
    ),
    "a request ends since an earlier one is applied": (
        Seen, "entry", "now.shown(shown)", "shown",
        ("promotion", "rollback", "both"),
    ),
    "a request ends only in the process that made it": (
        Production, "observe", "if now.request is not None]", "if now.request is not None and False]",
        ("promotion", "rollback", "killed"),
    ),
    "an alias of a killed process is never moved": (
        Production, "observe", "not result.applied", "False",
        ("promotion", "rollback", "killed"),
    ),
    "a rollback is decided while the alias is being moved": (
        Production, "roll_back", "seen.moving(alias)", "False",
        ("rollback", "promotion", "turns"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, right, wrong, schedule = FAULTS[fault]
    source = dedent(inspect.getsource(getattr(owner, name)))
    assert right in source
    planted = dict[str, object]()
    module = sys.modules[getattr(owner, "__module__", transitions.__name__)]
    exec(source.replace(right, wrong), module.__dict__, planted)
    monkeypatch.setattr(owner, name, planted[name])
    with pytest.raises((AssertionError, RegistryError)):
        for _ in interrupted(*schedule):
            pass
