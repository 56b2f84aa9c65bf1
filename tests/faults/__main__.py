"""``python -m tests.faults``: faults at every write of every scenario; prints the table fault → tries → survived."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.results import provenance
from tests.faults.campaign import rows, table, try_scenario
from tests.faults.injection import Fault
from tests.faults.scenarios import SCENARIOS

FAULTS: tuple[Fault, ...] = ("kill", "disk full")

parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
parser.add_argument("--most", type=int, help="writes to try in each scenario; all by default")
parser.add_argument("--seed", type=int, default=0, help="seed of the choice")
parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
parser.add_argument("--json", type=Path, help="file for the table")
options = parser.parse_args()
trials = {}
for name in options.scenarios:
    for fault in options.faults:
        with tempfile.TemporaryDirectory(prefix="microseg-faults-") as folder:
            trials[name, fault] = try_scenario(name, fault, Path(folder) / name, options.most, options.seed)
        print(table({(name, fault): trials[name, fault]}).splitlines()[-1], file=sys.stderr, flush=True)
if options.json:
    content = {"provenance": provenance("tests.faults"), "tables": {"faults": rows(trials)}}
    options.json.write_text(json.dumps(content, indent=1) + "\n")
print(table(trials))
failures = [failure for trial in trials.values() for failure in trial.failures]
print("\n".join(failures[:20]))
sys.exit(bool(failures))
