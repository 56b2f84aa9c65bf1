"""``python -m tests.fuzz``: damaged files for every reader; prints the table reader → tries → survived."""

import argparse
import sys
from pathlib import Path

from tests.fuzz.campaign import fuzz, save_faults, table
from tests.fuzz.readers import READERS

parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
parser.add_argument("--inputs", type=int, default=100_000, help="number of inputs, shared by the readers")
parser.add_argument("--start", type=int, default=0, help="first seed")
parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
parser.add_argument("--faults", type=Path, help="folder for the inputs that were neither accepted nor refused")
options = parser.parse_args()
found = fuzz(options.inputs, options.start, readers=tuple(options.readers), progress=lambda _: None)
print(table(found))
for reader, outcome in found.items():
    for seed, what in outcome.faults[:10]:
        print(f"{reader} {seed}: {what}")
if options.faults:
    save_faults(found, options.faults)
sys.exit(any(outcome.faults for outcome in found.values()))
