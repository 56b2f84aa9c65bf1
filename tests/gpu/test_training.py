"""Training on a GPU: it never waits for results inside a step, and computes what a CPU computes."""

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.apply_func import move_data_to_device

from microseg.config.training_params import AdaptSettings, TrainSettings
from microseg.datasets.sampling import CropSampler, Sample
from microseg.errors import TrainingError
from microseg.models.config import NetworkConfig
from microseg.models.network import PyramidSegmenter
from microseg.slides.images import write_png
from microseg.training import loop
from microseg.training.adaptation.domain_shift import DomainShift, TargetLab
from microseg.training.adaptation.dual_adaptive import DualAdaptivePyramid
from microseg.training.adaptation.normalization import read_statistics
from microseg.training.adaptation.source_free import SourceFree
from microseg.training.checkpoints import read_checkpoint
from microseg.training.devices import Progress, make_fabric
from microseg.training.loading import BatchLoader
from microseg.training.loop import TrainingResult, fit
from microseg.training.method import Supervised, TrainingMethod

SIDE = 64
METHODS = ["supervised", "dual_adaptive", "source_free"]
Make = Callable[..., TrainingMethod]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Factory of methods on a small network; values override settings."""
    rng = np.random.default_rng(0)
    for number in range(6):
        write_png(tmp_path / f"{number}.png", rng.integers(40, 220, (96, 96, 3), dtype=np.uint8))
        write_png(tmp_path / f"{number}-mask.png", rng.integers(0, 2, (96, 96), dtype=np.uint8))
    source = [Sample(tmp_path / f"{number}.png", tmp_path / f"{number}-mask.png") for number in range(3)]
    windows = tuple(tmp_path / f"{number}.png" for number in range(3, 6))

    def build(kind: str = "supervised", seed: int = 0, **values: Any) -> TrainingMethod:
        torch.manual_seed(seed)
        config = NetworkConfig(
            classes=("a", "b"), encoder="blocks", channels=(8, 16), pyramid_bins=(1, 2), pyramid_channels=8
        )
        network = PyramidSegmenter(config)
        given: dict[str, Any] = {"steps": 24, "batch_size": 4, "crop_size": SIDE, "workers": 2, "warmup_steps": 2}
        given |= {"evaluate_every": 1000, "checkpoint_every": 1000} | values
        if kind == "supervised":
            sampler = CropSampler(source, size=SIDE, batch=4, seed=1, classes=2)
            return Supervised(network, sampler, TrainSettings(**given))
        statistics = read_statistics(network)
        lab = TargetLab("lab", windows, DomainShift(1.0, statistics, statistics))
        options: dict[str, Any] = {"crop": SIDE, "batch": 4, "seed": 1, "folder": tmp_path / f"work-{kind}-{seed}"}
        settings = AdaptSettings(**{"pseudo_label_rounds": 1} | given)
        kinds = {"dual_adaptive": DualAdaptivePyramid, "source_free": SourceFree}
        return kinds[kind](network, source if kind == "dual_adaptive" else (), [lab], settings, **options)

    return build


@pytest.fixture
def fabric(cuda: torch.device) -> Fabric:
    return make_fabric(cuda.type)


def run(method: TrainingMethod, fabric: Fabric, **values: Any) -> tuple[TrainingResult, list[float]]:
    losses: list[float] = []

    def on_step(_step: int, step_losses: Mapping[str, float]) -> None:
        losses.append(step_losses["total"])

    return fit(method, fabric=fabric, progress=Progress(on_step), **values), losses


@pytest.mark.parametrize("kind", METHODS)
def test_waits_for_the_gpu_once_in_ten_steps(
    make: Make, fabric: Fabric, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, waits = loop._Fit._take_step, dict[int, list[str]]()

    def watched(self: Any) -> None:
        if self.step < 3:  # the first steps prepare data, start workers and create the optimizer's state
            original(self)
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                original(self)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits[self.step] = [str(it.message) for it in caught if "called a synchronizing" in str(it.message)]

    monkeypatch.setattr(loop._Fit, "_take_step", watched)
    _, losses = run(make(kind), fabric)
    assert len(losses) == 24
    assert all(math.isfinite(loss) for loss in losses)
    assert {step: found for step, found in waits.items() if found and step % 10} == {}
    assert all(len(found) <= 1 for found in waits.values())


@pytest.mark.parametrize("kind", METHODS)
def test_colors_are_those_of_the_cpu(make: Make, cuda: torch.device, kind: str) -> None:
    """Apart from the noise, which each device draws itself."""
    method = make(kind)
    torch.set_float32_matmul_precision("high")
    try:
        for step in range(4):
            batch = method.batch(step, rank=0, world=1)
            for jitter in _jitters(batch):
                jitter.noise.zero_()
            expected = method.augment(batch, step, rank=0)
            got = method.augment(move_data_to_device(copy.deepcopy(batch), cuda), step, rank=0)
            for one, other in zip(_tensors(got), _tensors(expected), strict=True):
                assert one.device.type == "cuda"
                assert one.dtype == other.dtype
                assert one.stride() == other.stride()
                torch.testing.assert_close(one.cpu(), other, atol=2e-5, rtol=0)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_noise_depends_on_the_step_alone(make: Make, cuda: torch.device) -> None:
    method = make()
    batch = move_data_to_device(method.batch(0, rank=0, world=1), cuda)
    batch.jitter.noise.fill_(0.1)
    one, other = (method.augment(batch, 0, rank=0).images for _ in range(2))
    assert torch.equal(one, other)
    for step, rank in ((1, 0), (0, 1)):
        assert not torch.equal(one, method.augment(batch, step, rank=rank).images)


def test_batches_are_pinned(make: Make, cuda: torch.device) -> None:
    method = make()
    for workers in (0, 2):
        loader = BatchLoader(lambda step: method.batch(step, rank=0, world=1), 0, 4, workers=workers, pin=True)
        try:
            for step in range(4):
                batch = next(loader)
                assert all(tensor.is_pinned() for tensor in _tensors(batch))
                assert batch.crops.images.is_contiguous(memory_format=torch.channels_last)
                assert torch.equal(batch.crops.images, method.batch(step, rank=0, world=1).crops.images)
        finally:
            loader.close()
    del cuda


def test_precision_and_optimizer(make: Make, fabric: Fabric) -> None:
    made = loop._Fit(make(), fabric, None, Progress(), None, "", 0.0)
    assert fabric.strategy.precision.precision == "bf16-mixed"
    assert made.optimizer.defaults["fused"]
    assert (made.read_every, made.workers) == (10, 2)
    half = loop._Fit(make(), make_fabric("cuda", precision="16-mixed"), None, Progress(), None, "", 0.0)
    assert not half.optimizer.defaults["fused"]
    half.settings = half.settings.model_copy(update={"steps": 4})
    assert half.run().steps == 4


@pytest.mark.parametrize("kind", METHODS)
def test_losses_are_those_of_the_cpu(make: Make, fabric: Fabric, kind: str) -> None:
    """In float32 without random noise; in bfloat16 with less digits."""
    options = {"source_color_jitter": 0.0, "steps": 6}
    options |= {} if kind == "supervised" else {"target_color_jitter": 0.0}
    _, expected = run(make(kind, **options), make_fabric("cpu"))
    _, exact = run(make(kind, 0, **options), make_fabric("cuda", precision="32-true"))
    _, mixed = run(make(kind, 0, **options), fabric)
    np.testing.assert_allclose(exact[:3], expected[:3], rtol=5e-3)
    np.testing.assert_allclose(mixed[:3], expected[:3], rtol=5e-2)


def test_loss_that_is_not_finite_stops_and_nothing_is_kept(make: Make, fabric: Fabric, tmp_path: Path) -> None:
    method, file, evaluated = make(evaluate_every=7, checkpoint_every=7), tmp_path / "c", []
    forward = method.forward

    def broken(batch: Any, progress: float) -> dict[str, torch.Tensor]:
        losses = forward(batch, progress)
        return {name: value * (math.nan if progress * 24 > 2.5 else 1.0) for name, value in losses.items()}

    method.forward = broken  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"became nan at step 4 "):
        run(method, fabric, checkpoint=file, evaluate=lambda _: evaluated.append(1) or {"score": 1.0})
    assert not evaluated
    assert not file.exists()


def test_resumes_where_it_was_interrupted(make: Make, fabric: Fabric, tmp_path: Path) -> None:
    """With the same batches and random states; sums on a GPU are not exact to the last bit."""
    _, expected = run(make(checkpoint_every=10), fabric)
    file, seen = tmp_path / "c", []

    def stop(step: int, losses: Mapping[str, float]) -> None:
        seen.append(losses["total"])
        if step == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(make(checkpoint_every=10), fabric=fabric, progress=Progress(stop), checkpoint=file)
    state = read_checkpoint(file, fingerprint="")
    assert state["step"] == 10
    assert [len(states) for states in state["random"]] == [1, 1]  # of the CPU and of the GPU
    torch.cuda.manual_seed(999)
    result, rest = run(make(seed=5, checkpoint_every=10), fabric, checkpoint=file)
    assert result.steps == 24
    assert len(rest) == 14
    np.testing.assert_allclose(rest, expected[10:], rtol=0.1)


def test_result_can_be_saved_and_has_the_memory_layout_of_the_cpu(make: Make, fabric: Fabric) -> None:
    method = make()
    run(method, fabric, evaluate=lambda network: {"score": float(next(network.parameters()).sum())})
    network = method.result().cpu()
    with torch.no_grad():
        assert network(torch.rand(1, 3, 40, 40)).isfinite().all()


@pytest.mark.parametrize("kind", METHODS)
def test_compiled_network_learns_the_same(make: Make, fabric: Fabric, kind: str) -> None:
    options = {"source_color_jitter": 0.0, "steps": 5}
    options |= {} if kind == "supervised" else {"target_color_jitter": 0.0}
    _, plain = run(make(kind, **options), fabric)
    compiled_method = make(kind, compile=True, **options)
    _, compiled = run(compiled_method, fabric)
    np.testing.assert_allclose(compiled, plain, rtol=0.1)
    assert copy.deepcopy(compiled_method.network).encoder._compiled_call_impl is None


def _tensors(batch: Any) -> list[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        return [batch]
    return [tensor for part in batch for tensor in _tensors(part)] if isinstance(batch, tuple) else []


def _jitters(batch: Any) -> list[Any]:
    if hasattr(batch, "noise"):
        return [batch]
    return [jitter for part in batch for jitter in _jitters(part)] if isinstance(batch, tuple) else []
