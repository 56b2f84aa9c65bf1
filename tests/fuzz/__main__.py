"""``python -m tests.fuzz``: damaged files for every reader; prints the table reader → tries → survived."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from tests.fuzz.campaign import fuzz, rows, save_faults, table
from tests.fuzz.readers import READERS

parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
parser.add_argument("--inputs", type=int, default=100_000, help="number of inputs, shared by the readers")
parser.add_argument("--start", type=int, default=0, help="first seed")
parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
parser.add_argument("--faults", type=Path, help="folder for the inputs that were neither accepted nor refused")
parser.add_argument("--json", type=Path, help="file for the table")
options = parser.parse_args()
report = partial(print, file=sys.stderr, flush=True)
found = fuzz(options.inputs, options.start, readers=tuple(options.readers), progress=report)
print(table(found))
for reader, outcome in found.items():
    for seed, what in outcome.faults[:10]:
        print(f"{reader} {seed}: {what}")
if options.json:
    options.json.write_text(json.dumps({"first_seed": options.start, "rows": rows(found)}, indent=1) + "\n")
if options.faults:
    save_faults(found, options.faults)
sys.exit(any(outcome.faults for outcome in found.values()))
