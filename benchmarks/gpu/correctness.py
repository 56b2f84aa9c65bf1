"""Correctness on a device: each computation against the same one in float64 on the CPU.

The error is ‖out − ref‖ / ‖ref‖ over all values. Each check states the largest error that is right for its precision:
float32 without TF32 is right to about 1e-6 in one layer, 16 bits to about 1e-2 through a network.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu.data import tiny_lab
from benchmarks.gpu.measure import Results, Setup
from microseg.api.training import train
from microseg.config.training_params import AdaptSettings, ArchitectureSettings, NetworkSettings, TrainSettings
from microseg.datasets.dataset import LabDataset
from microseg.datasets.sampling import Crops, Sample
from microseg.inference.engine import Engine
from microseg.inference.tiling import cut_tile
from microseg.models.domain_classifiers import reverse_gradient
from microseg.models.files import load_network
from microseg.models.losses import domain_loss, interior_loss, segmentation_loss
from microseg.models.network import PyramidSegmenter, configure_network
from microseg.training.adaptation.domain_shift import DomainShift, TargetLab
from microseg.training.adaptation.dual_adaptive import AdaptationBatch, DualAdaptivePyramid
from microseg.training.adaptation.normalization import read_statistics
from microseg.training.devices import Progress, make_fabric

__all__ = ["CHECKS", "Check", "relative_error", "run"]

_RESUMED_STEPS = 10
_SIDE = 96  # pixels
_LEAD = 0.1  # of probability


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: What is compared.
        error: Relative error.
        tolerance: Largest error that is right.
        note: What the error is relative to, where it is not the same computation in float64 on the CPU.
    """

    name: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is a number, and not above the tolerance."""
        return math.isfinite(self.error) and self.error <= self.tolerance


def relative_error(out: Sequence[Tensor] | Tensor, reference: Sequence[Tensor] | Tensor) -> float:
    """‖out − ref‖ / ‖ref‖ over all values of one or more tensors; NaN where a value is not finite."""
    outs = [out] if isinstance(out, Tensor) else list(out)
    references = [reference] if isinstance(reference, Tensor) else list(reference)
    pairs = [(a.detach().cpu().double(), b.detach().cpu().double()) for a, b in zip(outs, references, strict=True)]
    difference = sum(float((a - b).square().sum()) for a, b in pairs)
    return math.sqrt(difference / max(sum(float(b.square().sum()) for _, b in pairs), 1e-300))


def run(setup: Setup, results: Results) -> None:
    """Run all checks; one that raises an error does not keep the others from running.

    Raises:
        ExceptionGroup: The errors.
    """
    errors = []
    for name, check in CHECKS.items():
        try:
            for one in check(setup.device):
                results.add(one.name, one.error, "error", one.note, tolerance=one.tolerance, passed=one.passed)
        except Exception as error:
            results.add(name, math.nan, "error", f"{type(error).__name__}: {error}"[:300], passed=False)
            errors.append(error)
    if errors:
        raise ExceptionGroup("checks that could not run", errors)


@contextmanager
def _float32() -> Iterator[None]:
    """Compute float32 without TF32, which has three digits."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


def _network(**architecture: Any) -> PyramidSegmenter:
    torch.manual_seed(0)
    settings = ArchitectureSettings(**architecture)
    network = PyramidSegmenter(configure_network(settings, ("background", "gland", "nucleus"), 0.5))
    with torch.no_grad():  # statistics of real inputs, so that all layers matter
        network.train()
        for _ in range(3):
            network(_images(4))
    return network.eval()


def _images(count: int, seed: int = 0, side: int = _SIDE) -> Tensor:
    """Smooth random images, (B, 3, S, S), float32."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, side // 8, side // 8, generator=generator)
    fine = torch.rand(count, 3, side, side, generator=generator)
    return 0.7 * nn.functional.interpolate(coarse, size=(side, side), mode="bilinear") + 0.3 * fine


def _masks(count: int, seed: int = 1, classes: int = 3) -> Tensor:
    """Random masks, (B, S, S), with ignored pixels."""
    masks = torch.randint(classes, (count, _SIDE, _SIDE), generator=torch.Generator().manual_seed(seed))
    masks[:, :5] = 255
    return masks


def _gradients(module: nn.Module) -> list[Tensor]:
    return [it.grad if it.grad is not None else torch.zeros_like(it) for it in module.parameters() if it.requires_grad]


def check_forward(device: torch.device) -> Iterator[Check]:
    """The network in evaluation mode, in each precision."""
    network, images = _network(), _images(4)
    with torch.inference_mode():
        reference = copy.deepcopy(network).double()(images.double())
        moved = copy.deepcopy(network).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        with _float32():
            yield Check("forward, float32", relative_error(moved(images.to(device)), reference), 1e-4)
        yield Check("forward, TF32", relative_error(moved(images.to(device)), reference), 1e-2)
        for dtype, tolerance in ((torch.bfloat16, 8e-2), (torch.float16, 1e-2)):
            name = str(dtype).removeprefix("torch.")
            with torch.autocast(device.type, dtype=dtype):
                out = moved(images.to(device))
            yield Check(f"forward, {name} autocast", relative_error(out, reference), tolerance)
            if device.type != "cpu":
                weights = copy.deepcopy(moved).to(dtype)
                out = weights(images.to(device=device, dtype=dtype))
                yield Check(f"forward, {name} weights", relative_error(out, reference), tolerance)


def check_losses(device: torch.device) -> Iterator[Check]:
    """Each loss and its gradient."""
    logits, masks = torch.randn(2, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(2)), _masks(2)
    interior = torch.rand(2, _SIDE, _SIDE, generator=torch.Generator().manual_seed(3))
    interior[:, :7] = math.nan
    losses: Mapping[str, Callable[[Tensor], Tensor]] = {
        "segmentation loss": lambda x: segmentation_loss(x, masks.to(x.device), 0.8),
        "interior loss": lambda x: interior_loss(x[:, 0], interior.to(x)),
        "domain loss": lambda x: domain_loss(x, True),
    }
    for name, loss in losses.items():
        values = []
        for x in (logits.double(), logits.to(device)):
            x = x.clone().requires_grad_(True)
            value = loss(x)
            value.backward()  # type: ignore[no-untyped-call]
            values.append((value, x.grad))
        (reference, slope), (out, own_slope) = values
        assert slope is not None
        assert own_slope is not None
        yield Check(name, relative_error(out, reference), 1e-5)
        yield Check(f"{name}, gradient", relative_error(own_slope, slope), 1e-5)


def check_step(device: torch.device) -> Iterator[Check]:
    """Gradients of a supervised step, with the statistics of the batch. Of a ResNet: those of the default encoder with
    random weights depend on the last digits of its inputs, in any precision.
    """
    network, images, masks = _network(encoder="resnet18").train(), _images(4), _masks(4)

    def gradients(module: PyramidSegmenter, of: Tensor, mixed: AbstractContextManager[Any]) -> list[Tensor]:
        with mixed:
            prediction = module(of)
            loss = module.head.loss(prediction, masks.to(of.device), 1.0)
        loss.backward()  # type: ignore[no-untyped-call]
        return _gradients(module)

    reference = gradients(copy.deepcopy(network).double(), images.double(), nullcontext())
    with _float32():
        own = gradients(copy.deepcopy(network).to(device), images.to(device), nullcontext())
    yield Check("gradients of a step, float32", relative_error(own, reference), 3e-3)
    mixed = torch.autocast(device.type, dtype=torch.bfloat16)
    own = gradients(copy.deepcopy(network).to(device), images.to(device), mixed)
    yield Check("gradients of a step, bfloat16", relative_error(own, reference), 0.3)


def check_gradient_reversal(device: torch.device) -> Iterator[Check]:
    """The gradient behind the reversal is −λ times that before it."""
    x = torch.randn(2, 16, 12, 12, generator=torch.Generator().manual_seed(4))
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    own = x.to(device).requires_grad_(True)
    (reverse_gradient(own, 0.3) * weight.to(device)).sum().backward()  # type: ignore[no-untyped-call]
    assert own.grad is not None
    yield Check("gradient reversal", relative_error(own.grad, -0.3 * weight.double()), 1e-6, "−λ times the gradient")


def check_adaptive_step(device: torch.device) -> Iterator[Check]:
    """Losses and gradients of a step of the adaptation, with both classifiers and pseudo-labels."""
    with TemporaryDirectory(prefix="microseg-gpu-") as name:
        method = _adaptation(Path(name))
    source = Crops(_images(2, 6), _masks(2, 7, classes=2))
    target = Crops(_images(2, 8), _masks(2, 9, classes=2))

    def step(own: DualAdaptivePyramid, dtype: torch.dtype, mixed: AbstractContextManager[Any]) -> list[Tensor]:
        own.train()
        where = next(own.parameters()).device

        def move(crops: Crops) -> Crops:
            assert crops.masks is not None
            return Crops(crops.images.to(where, dtype), crops.masks.to(where))

        with mixed:
            losses = own(AdaptationBatch(move(source), move(target)), 0.25)
        losses["total"].backward()
        return [losses["total"], *_gradients(own)]

    reference = step(copy.deepcopy(method).double(), torch.float64, nullcontext())
    with _float32():
        out = step(copy.deepcopy(method).to(device), torch.float32, nullcontext())
    yield Check("adaptive step, loss", relative_error(out[0], reference[0]), 1e-4)
    yield Check("adaptive step, gradients", relative_error(out[1:], reference[1:]), 3e-3)
    mixed = torch.autocast(device.type, dtype=torch.bfloat16)
    out = step(copy.deepcopy(method).to(device), torch.float32, mixed)
    yield Check("adaptive step, gradients, bfloat16", relative_error(out[1:], reference[1:]), 0.15)


def _adaptation(folder: Path) -> DualAdaptivePyramid:
    """The default adaptation of a small lab to itself."""
    lab = tiny_lab(folder)
    torch.manual_seed(0)
    network = PyramidSegmenter(configure_network(ArchitectureSettings(encoder="resnet18"), lab.metadata.classes, 1.0))
    rows = lab.select(labelled=True)
    samples = [Sample(lab.image_path(row), lab.mask_path(row)) for row in rows]
    statistics = read_statistics(network)
    shift = DomainShift(1.0, statistics, statistics, 0.0)
    target = TargetLab(lab.metadata.lab, tuple(lab.image_path(row) for row in rows), shift)
    settings = AdaptSettings(lambda_image=0.3, lambda_feature=0.7)
    return DualAdaptivePyramid(network, samples, [target], settings, crop=64, batch=2, seed=0, folder=folder / "work")


def check_resume(device: torch.device) -> Iterator[Check]:
    """A training that is interrupted and resumed, against one that is not.

    On a GPU some sums have no fixed order, so that two equal trainings differ as well; the resumed one must not differ
    more than these do.
    """
    with TemporaryDirectory(prefix="microseg-gpu-") as name:
        lab, folder = tiny_lab(Path(name)), Path(name)
        whole, again = (_train(lab, folder / number, device) for number in "ab")
        resumed = _train(lab, folder / "c", device, interrupted=True)
    spread = relative_error(again, whole)
    note = f"against the training without interruption; two of these differ by {spread:.1e}"
    yield Check("resumed training", relative_error(resumed, whole), 0.0 if spread == 0 else max(5 * spread, 1e-6), note)


class _InterruptedError(Exception):
    """Ends a training."""


def _train(lab: LabDataset, folder: Path, device: torch.device, *, interrupted: bool = False) -> list[Tensor]:
    """Parameters after a short training, which is interrupted and resumed where asked for."""
    network = NetworkSettings(encoder="blocks", channels=(8, 16), pyramid_bins=(1, 2), pyramid_channels=8, weights=None)
    settings = TrainSettings(
        steps=2 * _RESUMED_STEPS,
        checkpoint_every=_RESUMED_STEPS,
        evaluate_every=10**6,
        crop_size=64,
        warmup_steps=2,
        log_every=1,
    )
    steps: list[int] = []

    def note(step: int, _losses: Mapping[str, float]) -> None:
        steps.append(step)
        if interrupted and step > _RESUMED_STEPS:
            raise _InterruptedError

    def start() -> None:
        fabric = make_fabric(device.type, precision="32-true")
        train([lab], network, settings, folder=folder, seed=3, fabric=fabric, progress=Progress(on_step=note))

    if interrupted:
        with suppress(_InterruptedError):
            start()
        before, interrupted = len(steps), False
        start()
        if steps[before] <= _RESUMED_STEPS:
            raise AssertionError(f"expected to resume after step {_RESUMED_STEPS}, got steps {steps}")
    else:
        start()
    values = load_network(folder).state_dict().values()
    return [value for value in values if value.is_floating_point()]


def check_tiling(device: torch.device) -> Iterator[Check]:
    """The engine on an image of several tiles, against the same tiles in float64, blended here."""
    network = _network()
    image = (_images(1, 10, side=704)[0, :, :517, :].permute(1, 2, 0).numpy() * 255).astype(np.uint8)  # (517, 704, 3)
    options: dict[str, Any] = {"device": device, "tile": 256, "halo": 32}
    plain = Engine(network, half=False, block=256, **options)
    reference = torch.zeros(len(network.channels), *image.shape[:2], dtype=torch.float64)  # (K, H, W)
    exact = copy.deepcopy(network).double()
    for tile in plain.plan(*image.shape[:2]):
        x = torch.from_numpy(cut_tile(image, tile)).permute(2, 0, 1)[None].double() / 255
        with torch.inference_mode():
            part = exact.head.outputs(exact(x))[0, :, tile.rows.inner_of_tile, tile.columns.inner_of_tile]
        reference[:, tile.rows.inner, tile.columns.inner] += part * torch.from_numpy(tile.weights)
    with _float32():
        out = torch.from_numpy(plain.probabilities(image))
    yield Check("tiles, float32", relative_error(out, reference), 1e-4)
    usual = torch.from_numpy(Engine(network, **options).probabilities(image))
    yield Check("tiles, as the engine computes by default", relative_error(usual, reference), 3e-2)
    second, first = reference.topk(2, dim=0).values.flip(0)  # the network has random weights: many pixels are undecided
    changed = (usual.argmax(0) != reference.argmax(0)) & (first - second > _LEAD)
    yield Check(
        "pixels of another class, by default",
        float(changed.double().mean()),
        0.01,
        f"fraction of the pixels; those whose first class leads by {_LEAD} of probability",
    )


CHECKS: Mapping[str, Callable[[torch.device], Iterator[Check]]] = {
    "forward": check_forward,
    "losses": check_losses,
    "step": check_step,
    "gradient_reversal": check_gradient_reversal,
    "adaptive_step": check_adaptive_step,
    "tiling": check_tiling,
    "resume": check_resume,
}
"""The checks by name; each yields one or more comparisons."""
