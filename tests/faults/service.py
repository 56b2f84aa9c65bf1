"""``python -m tests.faults.service``: faults of a running service while it works; prints what survived.

Real servers, real flows, small made labs. In each try a lab arrives (it is ingested, adapted to, and the candidate is
evaluated), a version is promoted in MLflow, or a batch is requested; at random times a part gets signals, a server or
the remote is away, the disk is full, or the clock jumps. A process that ended is started again, as systemd does.
Nothing else is done. The try is survived if everything is finished some minutes later, no run and no state is left
over, and nothing was done twice.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from mlflow import MlflowClient

from benchmarks.results import provenance
from microseg.datasets.dataset import open_lab_dataset
from microseg.registry.version import MODEL_NAME, PRODUCTION
from microseg.synthetic.labs import LAB_B, generate_lab
from tests.faults.servers import Service

WORK = ("onboard", "promote", "segment")
PARTS = ("serve", "prefect", "mlflow", "runner", "watcher", "receiver", "run")
ONLY = {"watcher": ("onboard",), "receiver": ("promote",), "remote": ("onboard", "promote")}
"""Work that a part takes part in, where that is not all."""
IMAGES, BATCH = 4, 12
LINES = {"onboard": 70, "promote": 10, "segment": 12}
"""Lines that the service writes meanwhile; a signal is sent after a random number of them, however fast it is."""


def faults() -> list[str]:
    """All faults, those of the clock and of the disk, which need a service of their own, last."""
    signals = [f"{kind} {part}" for kind in ("kill", "terminate") for part in PARTS]
    away = [f"{server} away {when}" for server in ("mlflow", "prefect", "remote") for when in ("before", "during")]
    return [*signals, *away, "mlflow silent", "prefect silent", "disk full", "clock +3h", "clock -3h"]


def prepare(service: Service) -> None:
    """Version 1, trained on lab_a, is in production; version 2 is adapted to lab_b."""
    service.train_first_version(service.folder / "labs" / "lab_a")
    service.until(arrive(service, "lab_b", 1), "the onboarding of lab_b")


def arrive(service: Service, lab: str, seed: int) -> Callable[[], bool]:
    """A lab arrives; returns whether it is onboarded, and done once."""
    made = generate_lab(
        service.folder / "labs" / lab, replace(LAB_B, name=lab), images=IMAGES, size=64, labelled=False, seed=seed
    )
    shutil.copytree(made, service.home / "incoming" / lab)

    def onboarded() -> bool:
        state = service.onboardings.read(lab)
        assert state is None or state.state != "failed", state
        if state is None or state.state != "completed":
            return False
        adapted = list(service.registry.versions.adapted_to(lab))
        assert len(adapted) == 1, f"{len(adapted)} candidates for {lab}"
        assert len(open_lab_dataset(service.home / "data" / "labs" / lab).rows) == IMAGES
        return True

    return onboarded


def promote(service: Service) -> Callable[[], bool]:
    """A person sets the alias of production; returns whether this is decided, once."""
    registry = service.registry
    active, before = registry.production.active().version, len(registry.production.history())
    version = next(it.version for it in registry.versions.all() if it.version != active)
    client = MlflowClient(tracking_uri=service.mlflow, registry_uri=service.mlflow)
    client.set_registered_model_alias(MODEL_NAME, PRODUCTION, str(version))

    def decided() -> bool:
        production, history = service.registry.production, service.registry.production.history()
        entries = [it for it in history[: len(history) - before] if it.version == version]
        results = [it for it in entries if it.action not in ("requested", "superseded")]
        if not results or results[0].state == "running" or production.pending_changes():
            return False
        assert len(results) == 1, results
        return service.registry.versions.aliases()[PRODUCTION] == production.active().version

    return decided


def batch(service: Service, number: int) -> Callable[[], bool]:
    """A batch is requested; returns whether all of its images are segmented."""
    style = replace(LAB_B, name="batch")
    folder = generate_lab(service.folder / f"batch-{number}", style, images=BATCH, size=96, labelled=False, seed=number)
    out = service.folder / f"results-{number}"
    run = service.run("segment", source=str(folder / "images"), out=str(out))

    def done() -> bool:
        if not service.ended(run):
            return False
        rows = (out / "summary.csv").read_text().splitlines()[1:]
        assert len(rows) == len({row.split(",")[0] for row in rows}) == BATCH, rows
        assert len(list(out.rglob("*.geojson"))) == BATCH
        assert not list(out.rglob("*.part"))
        return True

    return done


def begin(service: Service, work: str, number: int) -> Callable[[], bool]:
    """Begin some work; returns whether it is finished."""
    if work == "onboard":
        return arrive(service, f"lab_{number}", number)
    return promote(service) if work == "promote" else batch(service, number)


@contextmanager
def unmounted(home: Path) -> Iterator[None]:
    """The remote of the datasets is not there."""
    remote = home / "dvc-remote"
    hidden = remote.with_name("dvc-remote-away")
    remote.rename(hidden)
    remote.write_text("not mounted\n")
    try:
        yield
    finally:
        remote.unlink()
        hidden.rename(remote)


@contextmanager
def full(home: Path) -> Iterator[None]:
    """The file system of the home is full."""
    filler = home.parent / "filler"
    try:
        with filler.open("wb") as file, suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(home).free)
        with filler.with_name("filler-2").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1024))
        yield
    finally:
        for path in home.parent.glob("filler*"):
            path.unlink()


def outage(service: Service, fault: str) -> AbstractContextManager[None]:
    """What is away."""
    kind, what = fault.split()[:2]
    if fault == "disk full":
        return full(service.home)
    if kind == "remote":
        return unmounted(service.home)
    return service.away(kind) if what == "away" else service.silent(kind)


def attempt(
    service: Service, work: str, fault: str, number: int, chance: random.Random, options: argparse.Namespace
) -> str:
    """One try; returns what was wrong, or nothing."""
    kind, what = fault.split()[:2]
    try:
        if fault.endswith("before") and (work, kind) not in (("promote", "mlflow"), ("segment", "prefect")):
            with outage(service, fault):
                finished = begin(service, work, number)
                time.sleep(options.seconds)
        else:
            finished = begin(service, work, number)
            if kind in ("kill", "terminate"):
                for _ in range(options.signals):
                    service.wait_for_output(chance.randrange(LINES[work]))
                    service.signal(what, signal.SIGKILL if kind == "kill" else signal.SIGTERM)
            else:
                time.sleep(0 if fault.endswith("before") else chance.uniform(0, 30 if work == "onboard" else 15))
            if kind == "clock":
                assert service.clock
                service.clock.set(int(what.removesuffix("h")) * 3600)
                time.sleep(options.seconds)
                service.clock.set(0)
            elif kind not in ("kill", "terminate"):
                with outage(service, fault):
                    time.sleep(options.seconds)
        service.until(finished, f"the end of {work}")
        service.until(lambda: not service.unfinished(), "no run in progress")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def plan(options: argparse.Namespace, chance: random.Random) -> list[tuple[str, str]]:
    """Work and fault of each try."""
    pairs = [
        (work, fault)
        for fault in options.faults
        for work in options.work
        if all(work in ONLY.get(word, WORK) for word in fault.split())
    ]
    return [it for _ in range(options.tries) for it in chance.sample(pairs, len(pairs))]


def main() -> int:
    """Try all faults; print the table."""
    every = faults()
    parser = argparse.ArgumentParser(prog="python -m tests.faults.service", description=__doc__)
    parser.add_argument("--tries", type=int, default=1, help="tries of each fault during each work (default: 1)")
    parser.add_argument("--signals", type=int, default=1, help="signals in each try of a signal (default: 1)")
    parser.add_argument("--faults", nargs="+", choices=every, default=[it for it in every if "clock" not in it])
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--seconds", type=float, default=60, help="length of an outage (default: 60)")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no try after this time")
    parser.add_argument("--patience", type=float, default=600, help="seconds in which a try has to end")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--home", type=Path, help="folder on a small file system, for the full disk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder to keep or to go on with; by default a temporary one")
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chance, end = random.Random(options.seed), time.monotonic() + 60 * options.minutes
    clock = any("clock" in it for it in options.faults)
    if options.home is None:
        options.faults = [it for it in options.faults if it != "disk full"]
    results: dict[tuple[str, str], list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="microseg-service-") as name:
        folder = options.keep or Path(name)
        home = options.home / "home" if options.home else None
        service = Service(folder, database=options.database, home=home, clock=clock, patience=options.patience)
        try:
            if not (home or folder / "home").exists() or service.onboardings.read("lab_b") is None:
                prepare(service)
            service.until(lambda: service.registry.versions.all(), "the registry")
            print("The service works.", flush=True)
            for number, (work, fault) in enumerate(plan(options, chance), 100 * options.seed):
                if time.monotonic() > end:
                    break
                began, restarts = time.monotonic(), service.restarts
                wrong = attempt(service, work, fault, number, chance, options)
                results.setdefault((work, fault), []).append(wrong)
                took, again = time.monotonic() - began, service.restarts - restarts
                text = f"{number} {work}, {fault}: {wrong or 'survived'} ({took:.0f} s, {again} restarts)"
                print(time.strftime("%H:%M:%S"), text, flush=True)
                if options.json:
                    options.json.write_text(json.dumps(content(results, options), indent=1) + "\n")
            doctor(service)
        finally:
            service.close()
    print("\n| work | fault | tries | survived |\n| --- | --- | --- | --- |")
    for (work, fault), wrong in sorted(results.items()):
        print(f"| {work} | {fault} | {len(wrong)} | {wrong.count('')} |")
    return any(any(wrong) for wrong in results.values())


def content(results: dict[tuple[str, str], list[str]], options: argparse.Namespace) -> dict[str, object]:
    """The results, for a file."""
    rows = [[work, fault, str(len(wrong)), str(wrong.count(""))] for (work, fault), wrong in sorted(results.items())]
    return {
        "provenance": provenance("tests.faults.service"),
        "database": options.database,
        "seconds": options.seconds,
        "signals": options.signals,
        "tables": {"faults": {"columns": ["work", "fault", "tries", "survived"], "rows": rows}},
        "failures": [f"{work}, {fault}: {it}" for (work, fault), wrong in results.items() for it in wrong if it],
    }


def doctor(service: Service) -> None:
    """Print what ``microseg doctor`` finds at the end."""
    variables = {
        "MICROSEG_HOME": str(service.home),
        "MICROSEG_PARAMS": str(service.folder / "params.yaml"),
        "MLFLOW_TRACKING_URI": service.mlflow,
        "PREFECT_API_URL": f"{service.prefect}/api",
    }
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "doctor"],
        cwd=service.folder, env=os.environ | variables, capture_output=True, text=True,
    )  # fmt: skip
    print(f"microseg doctor: {done.returncode}\n{done.stdout}{done.stderr}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
