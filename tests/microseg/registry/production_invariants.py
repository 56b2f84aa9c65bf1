"""What must hold of production after any interleaving: written a second time, without the code under test."""

from dataclasses import dataclass, field

from microseg.registry.promotions import promotions
from microseg.registry.transitions import Entry, replay
from microseg.registry.version import PRODUCTION
from tests.microseg.registry.production_model import World

RESULTS = ("promoted", "removed", "rolled back", "reverted")


@dataclass
class Ledger:
    """The valid entries of a history, and the version in use after each, by hand."""

    active: dict[str, int | None] = field(default_factory=dict)
    previous: dict[str, int | None] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, Entry] = field(default_factory=dict)
    valid: list[Entry] = field(default_factory=list)

    def in_use(self, alias: str) -> int | None:
        return self.active.get(alias) or self.active.get(PRODUCTION)

    def add(self, entry: Entry, world: World) -> None:
        """Check an entry if it is valid; leave it out otherwise."""
        alias, version, now = entry.alias, entry.version, self.active.get(entry.alias)
        if entry.after != self.last.get(alias, 0):
            return
        if entry.action in ("promoted", "removed", "reverted"):
            request = self.waiting.get(alias)
            if request is None or request.number != entry.request or request.version != version:
                return
            if entry.against != self.in_use(alias):
                return
            if entry.action == "promoted":
                assert (version, entry.against) in world.judged
                assert (version, entry.against) not in world.bad
            assert entry.audit.reason
            if entry.audit.reason.startswith("The alias was set back"):
                clicks = [click for click in world.clicks if click.alias == alias and click.entries < entry.number]
                assert any(click.version == now or click.excused for click in clicks), f"nobody has: {entry}"
            del self.waiting[alias]
        if entry.action == "rolled back":
            if version != self.previous.get(alias) or entry.against != now or (version is None and now is None):
                return
            if version is None and alias == PRODUCTION:
                return
            assert entry.audit.by == "eve"
            self.waiting.pop(alias, None)
        if entry.action == "requested":
            self.waiting[alias] = entry
        if entry.action in ("promoted", "removed") and now not in (None, version):
            self.previous[alias] = now
        if entry.action == "rolled back":
            self.previous[alias] = None
        if entry.action in ("promoted", "removed", "rolled back"):
            self.active[alias] = version
        if entry.audit.via == "command":
            assert entry.audit.by in ("train", "ann", "ben", "eve")
        self.last[alias] = entry.number
        self.valid.append(entry)


def check_history(world: World) -> Ledger:
    """What is active was validated and judged against its predecessor; every request has a result and an author."""
    ledger = Ledger()
    assert [entry.number for entry in world.store.log] == list(range(1, len(world.store.log) + 1))
    for entry in world.store.log:
        ledger.add(entry, world)
    state = replay(world.store.log)
    assert [entry.number for entry in state.entries] == [entry.number for entry in ledger.valid]
    for alias, now in state.aliases.items():
        assert (now.active, now.previous) == (ledger.active.get(alias), ledger.previous.get(alias))
        assert state.in_use(alias) == ledger.in_use(alias)
    last = dict[str, str]()  # the outcome of the last request of each alias
    for promotion in reversed(promotions(state)):
        if promotion.audit.via == "command" and promotion.action == "promoted":
            assert promotion.audit.by
            assert promotion.audit.reason == f"{promotion.audit.by} promotes {promotion.version}"
        if promotion.action != "ignored":
            last[promotion.alias] = promotion.action
    assert "superseded" not in last.values()  # the last request is applied, or reverted with the reason
    assert "requested" not in last.values()
    return ledger


def check_end(world: World, ledger: Ledger) -> None:
    """Nothing is left to do, and the aliases show what is active."""
    assert world.production_aliases() == {alias: version for alias, version in ledger.active.items() if version}
    assert not ledger.waiting
    results = {entry.alias: entry for entry in ledger.valid if entry.action in RESULTS}
    assert all(world.store.log[entry.number - 1].applied for entry in results.values())
    entries = len(world.store.log)
    world.reconcile()
    assert len(world.store.log) == entries


def check_clicks(world: World, ledger: Ledger) -> None:
    """Each click became a request, unless somebody moved the alias again before anyone saw it; and no other did."""
    for entry in ledger.valid:
        if entry.action == "requested" and entry.audit.via == "mlflow":
            assert any(
                (click.alias, click.version) == (entry.alias, entry.version) and click.entries < entry.number
                for click in world.clicks
            ), f"nobody has requested this: {entry}"
    for number, click in enumerate(world.clicks):
        seen = any(
            (entry.alias, entry.version) == (click.alias, click.version)
            and entry.action in ("requested", "rolled back", "ignored")  # to the same version at the same time
            for entry in ledger.valid
            if entry.number > click.entries
        )
        before = [
            entry
            for entry in ledger.valid
            if entry.number <= click.entries and entry.alias == click.alias and entry.action not in ("ignored", "kept")
        ]
        waiting = [entry for entry in before if entry.action == "requested" and entry.version == click.version]
        open_before = bool(waiting) and before[-1] is waiting[-1]
        again = any(later.alias == click.alias for later in world.clicks[number + 1 :])
        assert seen or again or click.excused or open_before, f"this click is lost: {click}"


def finish(world: World) -> None:
    """The living processes end, then the reconciler runs; check what must hold then."""
    while world.processes:
        world.step(0)
    world.reconcile()
    world.reconcile()
    ledger = check_history(world)
    check_end(world, ledger)
    check_clicks(world, ledger)
