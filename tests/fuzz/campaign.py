"""Many damaged files for every reader, in child processes with limits, and the table of what became of them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from microseg.errors import ResourceLimitError
from microseg.limits import SECONDS, run_limited
from tests.fuzz.readers import READERS, damaged_files, prepare, try_inputs

__all__ = ["Outcome", "fuzz", "rows", "save_faults", "table"]

_BATCH = 250
_EACH = 0.25  # seconds that an input of a batch may take on average; the slowest readers need 0.1 s


@dataclass
class Outcome:
    """What became of the inputs of one reader.

    Attributes:
        counts: Number of inputs by what happened: accepted, refused, foreign exception, crash, hang, memory.
        faults: Seeds of the inputs that were neither accepted nor refused, with what happened.
        slowest: Processor time of the slowest input, in seconds.
        memory: Largest memory of a process that read inputs, in MiB.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[int, str]] = field(default_factory=list)
    slowest: float = 0.0
    memory: int = 0


def fuzz(
    inputs: int, start: int = 0, *, readers: tuple[str, ...] = tuple(READERS), progress: Callable[[str], None] = print
) -> dict[str, Outcome]:
    """Try inputs, the same number for each reader.

    Args:
        inputs: Number of inputs of all readers together.
        start: First seed.
        readers: Names of the readers.
        progress: Called with a line after each reader.
    """
    found = {}
    each = -(-inputs // len(readers))
    for reader in readers:
        outcome = found[reader] = Outcome()
        for first in range(start, start + each, _BATCH):
            _try(reader, range(first, min(first + _BATCH, start + each)), outcome)
        progress(f"{reader}: {dict(outcome.counts)}")
    return found


def _try(reader: str, seeds: range, outcome: Outcome) -> None:
    """Try a batch; where it fails as a whole, its halves, down to the input that is the cause."""
    try:
        run_limited(reader, prepare, reader, seconds=120, memory=2**40)  # imports are not part of an input
        seconds = SECONDS if len(seeds) == 1 else SECONDS + _EACH * len(seeds)
        accepted, refused, foreign, slowest, memory = run_limited(reader, try_inputs, reader, seeds, seconds=seconds)
        if slowest > SECONDS and len(seeds) > 1:
            raise ResourceLimitError(f"one of these inputs took {slowest:.1f} s")
    except (ResourceLimitError, MemoryError) as error:
        if len(seeds) > 1:
            middle = seeds.start + len(seeds) // 2
            _try(reader, range(seeds.start, middle), outcome)
            _try(reader, range(middle, seeds.stop), outcome)
            return
        text = str(error)
        kind = "memory" if "memory" in text else "crash" if "crashed" in text else "hang"
        outcome.counts[kind] += 1
        outcome.faults.append((seeds.start, text))
        return
    outcome.counts.update({"accepted": accepted, "refused": refused, "foreign": len(foreign)})
    outcome.faults += foreign
    outcome.slowest, outcome.memory = max(outcome.slowest, slowest), max(outcome.memory, memory)


def table(found: dict[str, Outcome]) -> str:
    """The outcomes as a table: reader → tries → survived."""
    columns = ("accepted", "refused", "foreign", "crash", "hang", "memory")
    lines = [f"{'reader':<14}{'tries':>8}{'survived':>10}" + "".join(f"{name:>10}" for name in columns)]
    lines[0] += f"{'slowest, s':>12}{'MiB':>6}"
    total: Counter[str] = Counter()
    every = Outcome(total, [], max(it.slowest for it in found.values()), max(it.memory for it in found.values()))
    for name, outcome in (found | {"all": every}).items():
        counts = outcome.counts
        survived = counts["accepted"] + counts["refused"]
        lines.append(
            f"{name:<14}{counts.total():>8,}{survived:>10,}"
            + "".join(f"{counts[column]:>10,}" for column in columns)
            + f"{outcome.slowest:>12.2f}{outcome.memory:>6,}"
        )
        if outcome is not every:
            total.update(counts)
    return "\n".join(lines)


def rows(found: dict[str, Outcome]) -> list[dict[str, object]]:
    """The outcomes as rows, for a file."""
    return [
        {
            "reader": name,
            "tries": it.counts.total(),
            **it.counts,
            "slowest_s": round(it.slowest, 3),
            "memory_mib": it.memory,
        }
        for name, it in found.items()
    ]


def save_faults(found: dict[str, Outcome], folder: Path) -> None:
    """Write the inputs that were neither accepted nor refused, to reproduce them."""
    for reader, outcome in found.items():
        for seed, _ in outcome.faults[:20]:
            for name, data in damaged_files(reader, seed):
                path = folder / reader / str(seed) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
