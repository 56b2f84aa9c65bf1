"""Training on a device: steps a second of the whole loop, against a step on a fixed batch that is on the device."""

import itertools
import math
import time
from collections.abc import Mapping

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.gpu.data import lab
from benchmarks.gpu.measure import BusyShare, Results, Setup, peak_memory, repeat
from microseg.api.training import train
from microseg.config.training_params import NetworkSettings, TrainSettings
from microseg.models.network import PyramidSegmenter, configure_network
from microseg.training.devices import Progress, make_fabric

__all__ = ["run"]

_WANTED = 0.9  # of the bare step
_WARM_UP = 40  # steps that are not measured: workers start, images are decoded


def run(setup: Setup, results: Results) -> None:
    """Measure the default batch, and one that fills a GPU."""
    sizes = [(2, 64)] if setup.quick else [(4, 192), (32, 256)]
    for batch, crop in sizes:
        _measure(setup, results, batch, crop, setup.seconds / len(sizes))


def _measure(setup: Setup, results: Results, batch: int, crop: int, seconds: float) -> None:
    title = f"{batch} crops of {crop}²"
    bare = _bare(setup, batch, crop, seconds / 4, complete=False)
    results.add(f"bare step, {title}", bare, "steps/s", "forward, loss, backward, fused AdamW on a fixed batch")
    whole = _bare(setup, batch, crop, seconds / 8, complete=True)
    results.add(f"bare step with clipping and averaging, {title}", whole, "steps/s")
    steps = 12 if setup.quick else max(2 * _WARM_UP, int(seconds / 3 * sorted(bare)[len(bare) // 2]))
    settings = TrainSettings(
        steps=steps,
        batch_size=batch,
        crop_size=crop,
        evaluate_every=10**6,
        checkpoint_every=10**6,
        max_minutes=None,
    )
    clock = _Clock(setup, 3 if setup.quick else _WARM_UP, settings.log_every if setup.on_gpu else 1)
    fabric = make_fabric(setup.device.type)
    with peak_memory(setup) as memory:
        train(
            [lab(setup, "nuclei")],
            NetworkSettings(weights=None),
            settings,
            folder=setup.folder / f"trained-{batch}-{crop}",
            fabric=fabric,
            progress=Progress(on_step=clock.step),
        )
    rates = clock.rates()
    note = f"precision {fabric._precision.precision}, {clock.steps} steps after {clock.first}"
    results.add(f"training, {title}", rates, "steps/s", note)
    median, best = sorted(rates)[len(rates) // 2], sorted(bare)[len(bare) // 2]
    results.add(f"training / bare step, {title}", median / best, "ratio", wanted=_WANTED)
    if clock.busy.share is not None:
        results.add(f"training, {title}, GPU busy", clock.busy.share, "share", "as the driver states it")
    if "device" in memory:
        results.add(f"training, {title}, peak memory on the device", memory["device"], "MB", "reserved by PyTorch")
    results.add(f"training, {title}, peak memory of the process", memory["process"], "MB")


class _Clock:
    """Notes the time of steps after a warm-up, and reads whether the GPU is busy between them.

    Args:
        setup: Device.
        warm_up: First step that is noted.
        every: Steps between two that are noted; the losses of so many are read at once, and reported together.
    """

    def __init__(self, setup: Setup, warm_up: int, every: int) -> None:
        self._setup, self._warm_up, self._every = setup, warm_up, every
        self._times: list[tuple[int, float]] = []
        self.busy = BusyShare(setup)

    def step(self, number: int, _losses: Mapping[str, float]) -> None:
        if number < self._warm_up or number % self._every:
            return
        if not self._times:
            self._setup.synchronize()
            self.busy.__enter__()
        self._times.append((number, time.perf_counter()))

    @property
    def first(self) -> int:
        return self._times[0][0]

    @property
    def steps(self) -> int:
        return self._times[-1][0] - self.first

    def rates(self) -> list[float]:
        """Steps a second in each of up to five parts of equal length."""
        self.busy.__exit__()
        count = min(5, len(self._times) - 1)
        marks = [self._times[round(part * (len(self._times) - 1) / count)] for part in range(count + 1)]
        return [(b[0] - a[0]) / (b[1] - a[1]) for a, b in itertools.pairwise(marks)]


def _bare(setup: Setup, batch: int, crop: int, seconds: float, *, complete: bool) -> list[float]:
    """Steps a second without any input, in the precision that training has by default."""
    classes = lab(setup, "nuclei").metadata.classes
    torch.manual_seed(0)
    network = PyramidSegmenter(configure_network(NetworkSettings(weights=None), classes, 0.5))
    network = network.to(device=setup.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    average = get_ema_multi_avg_fn(0.98)  # type: ignore[no-untyped-call]
    averaged = AveragedModel(network, multi_avg_fn=average, use_buffers=True) if complete else None
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    images = torch.rand(batch, 3, crop, crop, device=setup.device).contiguous(memory_format=torch.channels_last)
    masks = torch.randint(len(classes), (batch, crop, crop), device=setup.device)
    mixed = make_fabric(setup.device.type)._precision.precision == "bf16-mixed"

    def step() -> None:
        with torch.autocast(setup.device.type, torch.bfloat16, enabled=mixed):
            prediction = network(images)
            loss = network.head.loss(prediction.float(), masks, 1.0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if complete:
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if averaged is not None:
            averaged.update_parameters(network)

    def steps() -> None:
        for _ in range(many):
            step()

    many = 1 if setup.quick else 20
    # cuDNN's search for its fastest algorithms, which takes more than half a minute, is left to long trainings
    rates = [many / one for one in repeat(steps, setup, seconds=seconds)]
    assert all(math.isfinite(rate) for rate in rates)
    return rates
