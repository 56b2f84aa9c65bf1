"""``python -m tests.faults.interleavings``: random interleavings of promotions; prints how many broke production.

The same model and invariants as tests/microseg/registry/test_production_interleavings.py, five times as many in a
second as with Hypothesis, which makes a failure smaller: here the seed of a failure repeats it.
"""

import argparse
import random
import sys

from microseg.errors import RegistryError
from microseg.registry.version import PRODUCTION
from tests.microseg.registry.production_invariants import finish
from tests.microseg.registry.production_model import World

PROCESSES = 4
ALIASES = (PRODUCTION, "production-lab_b")


def interleave(seed: int, steps: int = 40) -> None:
    """Start, run and kill processes, and click, in a random order; check what must hold then."""
    chance = random.Random(seed)
    refused = [(chance.randint(1, 4), chance.choice([None, 1, 2, 3, 4])) for _ in range(chance.randint(0, 6))]
    world = World(frozenset(refused if chance.random() < 0.6 else ()))
    if (1, None) not in world.bad:
        world.promote(1, PRODUCTION, "train")
    aliases = ALIASES if chance.random() < 0.5 else ALIASES[:1]
    weights = {it: chance.random() for it in ("promote", "reconcile", "roll back", "click", "run", "kill")}
    weights["run"] *= 3
    for _ in range(chance.randint(5, steps)):
        action = chance.choices(list(weights), list(weights.values()))[0]
        alias, version = chance.choice(aliases), chance.randint(1, 4)
        starts = len(world.processes) < PROCESSES
        if action == "promote" and starts:
            world.start(world.promote, version, alias, chance.choice(["ann", "ben"]))
        elif action == "reconcile" and starts:
            world.start(world.reconcile)
        elif action == "roll back" and starts:
            world.start(world.roll_back, alias)
        elif action == "click" and chance.random() < 0.5:
            world.click(chance.choice([None, version]), alias)
        elif action == "kill" and world.processes and chance.random() < 0.5:
            world.kill(chance.randrange(PROCESSES))
        else:
            process = chance.randrange(PROCESSES)
            for _ in range(chance.randint(1, 12)):
                if world.processes:
                    world.step(process)
    finish(world)


def main() -> int:
    """Try interleavings; print those that fail."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.interleavings", description=__doc__)
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    options = parser.parse_args()
    failed = 0
    for seed in range(options.seed, options.seed + options.number):
        try:
            interleave(seed)
        except (AssertionError, RegistryError) as error:
            failed += 1
            print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
    print(f"{options.number} interleavings, {failed} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
