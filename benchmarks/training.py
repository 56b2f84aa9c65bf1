"""How long a step of the adaptation takes, beside the same step as PyTorch would do it by itself.

  microseg   normalisations of fixed statistics are computed by the convolutions, AdamW goes over the weights once
  PyTorch    each layer by itself, AdamW as it is by default
Both take the same steps, from the same weights and crops of two made labs, by the settings of `adapt`: both
adversaries, pseudo-labels, batches of 4 + 4 crops. They take turns, so that what else the machine does meets both;
ratios are taken turn by turn.
"""

import argparse
import copy
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from benchmarks.spread import spread

if TYPE_CHECKING:
    from microseg.model import PyramidSegmenter

__all__ = ["main"]

_BASE = "PyTorch"
_EPILOG = """\
A ratio of 2 means: half the time of PyTorch's. The machine's other work is in all figures: look at the spread.

Example: python -m benchmarks.training --json training.json
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--turns", type=int, default=7, help="of both (default: 7)")
    parser.add_argument("--steps", type=int, default=8, help="of one turn, of which the first two do not count")
    parser.add_argument("--crop", type=int, default=192, help="side of a crop in pixels (default: 192)")
    parser.add_argument("--encoder", default="tf_efficientnet_lite0", help="of the network made (default: %(default)s)")
    parser.add_argument("--network", type=Path, metavar="FOLDER", help="a trained one; by default one is made")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    chosen = parser.parse_args(arguments)
    for name, least in (("turns", 1), ("steps", 3)):
        if getattr(chosen, name) < least:
            parser.error(f"--{name}: expected at least {least}, got {getattr(chosen, name)}")
    with tempfile.TemporaryDirectory(prefix="microseg-training-") as folder:
        figures = _measure(Path(folder), chosen)
    _print_table(figures)
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=2) + "\n")


def _measure(folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    import torch

    from benchmarks.workload import MPP, given_or_made
    from microseg.data.synthetic import LAB_A, LAB_B, make_lab

    network = given_or_made(chosen.network, folder / "network", encoder=chosen.encoder)
    for name, lab in (("source", LAB_A), ("target", LAB_B)):
        labelled, size = name == "source", 2 * chosen.crop
        make_lab(folder / name, lab, images=4, size=size, mpp=MPP, labelled=labelled, test_images=0, seed=0)
    seconds: dict[str, list[float]] = {_BASE: [], "microseg": []}
    losses: dict[str, float] = {}
    for turn in range(chosen.turns):
        sides: dict[str, AbstractContextManager[None]] = {_BASE: _as_pytorch_does(), "microseg": nullcontext()}
        for name, side in sides.items():
            with side:
                taken, losses[name] = _steps(network, folder, folder / f"{name}-{turn}", chosen.steps, chosen.crop)
            seconds[name].append(statistics.median(taken[2:]))
    return {
        "encoder": network.config.encoder,
        "threads": torch.get_num_threads(),
        "crop": chosen.crop,
        "seconds": seconds,
        "ratio": [base / own for base, own in zip(seconds[_BASE], seconds["microseg"], strict=True)],
        "loss": losses,
    }


@contextmanager
def _as_pytorch_does() -> Iterator[None]:
    import torch

    from microseg.training.frozen import FrozenNorms

    def adamw(parameters: Any, *, weight_decay: float, **_how: Any) -> torch.optim.Optimizer:
        return usual(parameters, weight_decay=weight_decay)

    usual = torch.optim.AdamW
    with patch.object(FrozenNorms, "folded", lambda _: nullcontext()), patch.object(torch.optim, "AdamW", adamw):
        yield


def _steps(network: "PyramidSegmenter", folder: Path, work: Path, steps: int, crop: int) -> tuple[list[float], float]:
    """Seconds of each step of a training, and the last loss."""
    import torch

    from microseg.data import read_image
    from microseg.data.sampling import Sample
    from microseg.training import AdaptSettings, DualAdaptive, Hooks, TargetLab, fit, make_fabric, measure_shift

    fabric = make_fabric("cpu")
    fabric.seed_everything(0, verbose=False)
    network = copy.deepcopy(network)
    images = {name: sorted((folder / name / "images").iterdir()) for name in ("source", "target")}
    labelled = [Sample(path, folder / "source" / "masks" / path.name) for path in images["source"]]
    known, new = ([read_image(path) for path in images[name]] for name in ("source", "target"))
    shift = measure_shift(network, known, new, search_scale=False)
    settings = AdaptSettings(steps=steps, crop=crop, rounds=1, average=0.0)
    lab = TargetLab("target", tuple(images["target"]), shift)
    method = DualAdaptive(network, labelled, [lab], settings, crop=crop, batch=settings.batch, seed=0, folder=work)
    ends, losses = [time.perf_counter()], list[float]()

    def on_step(_step: int, figures: Mapping[str, float]) -> None:
        ends.append(time.perf_counter())
        losses.append(figures["total"])

    fit(method, settings, fabric=fabric, hooks=Hooks(on_step=on_step))
    assert torch.isfinite(torch.tensor(losses)).all()
    return [after - before for before, after in itertools.pairwise(ends)], losses[-1]


def _print_table(figures: Mapping[str, Any]) -> None:
    print(
        f"{figures['encoder']}, crops of {figures['crop']} x {figures['crop']}, {figures['threads']} threads; "
        f"median (least to most) of {len(figures['ratio'])} turns\n"
    )
    print("| a step by | ms | PyTorch's time / its | loss of the last step |")
    print("| --- | --- | --- | --- |")
    for name, seconds in figures["seconds"].items():
        ratio = spread(figures["ratio"], 2) if name != _BASE else "1"
        print(f"| {name} | {spread([1000 * it for it in seconds], 0)} | {ratio} | {figures['loss'][name]:.4f} |")


if __name__ == "__main__":
    main()
