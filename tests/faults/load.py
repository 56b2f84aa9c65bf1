"""``python -m tests.faults.load``: many images are ingested and segmented while many labs arrive; prints what is lost.

Real servers with SQLite or PostgreSQL. Nothing may be lost or done twice, and no run may fail since a database is
locked.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from microseg.datasets.dataset import open_lab_dataset
from microseg.synthetic.labs import LAB_B, generate_lab
from tests.faults.servers import SERVERS, Service

SIDE = 64
LOCKED = "(sqlite3.OperationalError) database is locked"


def load(service: Service, images: int, labs: int) -> dict[str, object]:
    """Ingest and segment some images while some labs arrive; what has become of them."""
    made = service.folder / "made"
    service.train_first_version(made / "lab_a")
    big = generate_lab(made / "big", replace(LAB_B, name="big"), images=images, size=SIDE, labelled=False, seed=1)
    out, names = service.folder / "results", [f"lab_{number}" for number in range(labs)]
    began = time.monotonic()
    runs = [service.run("segment", source=str(big / "images"), out=str(out)), service.run("ingest", folder=str(big))]
    for number, name in enumerate(names):
        lab = generate_lab(made / name, replace(LAB_B, name=name), images=4, size=SIDE, labelled=False, seed=2 + number)
        shutil.copytree(lab, service.home / "incoming" / name)

    def finished() -> bool:
        states = [service.onboardings.read(name) for name in names]
        assert not any(it is not None and it.state == "failed" for it in states), states
        return all(service.ended(run) for run in runs) and all(it and it.state == "completed" for it in states)

    wrong = ""
    try:
        service.until(finished, "the end of everything")
        service.until(lambda: not service.unfinished(), "no run in progress")
    except AssertionError as error:
        wrong = str(error)
    seconds = time.monotonic() - began
    summary = out / "summary.csv"
    rows = [line.split(",")[0] for line in summary.read_text().splitlines()[1:]] if summary.exists() else []
    candidates = [len(list(service.registry.versions.adapted_to(name))) for name in names]
    dataset = service.home / "data" / "labs" / "big"
    logs = {name: (service.folder / f"{name}.txt").read_text(errors="replace") for name in SERVERS}
    return {
        "images": images,
        "labs": labs,
        "segmented": len(set(rows)),
        "twice": len(rows) - len(set(rows)),
        "outlines": len(list(out.rglob("*.geojson"))),
        "ingested": len(open_lab_dataset(dataset).rows) if dataset.exists() else 0,
        "onboarded": candidates.count(1),
        "seconds": round(seconds),
        "wrong": wrong,
        "locked in the log": {
            name: text.count("(sqlite3.OperationalError) database is locked") for name, text in logs.items()
        },
    }


def main() -> int:
    """Try it with one kind of database; print what has become of everything."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.load", description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--labs", type=int, default=10)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--patience", type=float, default=7200, help="longest time in seconds")
    parser.add_argument("--json", type=Path, help="file for the result")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="microseg-load-") as name:
        service = Service(Path(name), database=options.database, patience=options.patience)
        try:
            result = {"database": options.database, **load(service, options.images, options.labs)}
        finally:
            service.close()
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    whole = [result[name] == options.images for name in ("segmented", "outlines", "ingested")]
    return not (all(whole) and result["onboarded"] == options.labs and not result["twice"] and not result["wrong"])


if __name__ == "__main__":
    sys.exit(main())
