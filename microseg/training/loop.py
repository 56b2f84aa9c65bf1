"""The training loop: optimize, average, evaluate, keep the best network, write checkpoints, resume from them."""

import copy
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from microseg.config.params import FitSettings
from microseg.cpu import tune_allocator
from microseg.errors import TrainingError
from microseg.files import atomic_write
from microseg.models.network import PyramidSegmenter
from microseg.training.devices import Progress
from microseg.training.method import TrainingMethod

__all__ = [
    "Evaluate",
    "TrainingResult",
    "checkpoint_file",
    "fit",
    "read_checkpoint",
    "remove_checkpoints",
    "write_checkpoint",
]

_log = logging.getLogger(__name__)

Evaluate = Callable[[PyramidSegmenter], Mapping[str, float]]
"""Metrics of a network; ``score`` among them (higher is better) selects the best one."""


@dataclass(frozen=True)
class TrainingResult:
    """Course of a training.

    Attributes:
        steps: Number of steps.
        best_step: Step of the network that was kept.
        seconds: Duration, over all resumptions.
        stopped: Reason of its end: ``steps``, ``minutes`` or ``patience``.
        evaluations: Metrics by step.
    """

    steps: int
    best_step: int
    seconds: float
    stopped: str
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)


def fit(
    method: TrainingMethod,
    *,
    fabric: Fabric,
    evaluate: Evaluate | None = None,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    fingerprint: str = "",
    elapsed: float = 0.0,
) -> TrainingResult:
    """Train until the steps are done, the time limit is reached, or patience ends; keep the best network.

    Args:
        method: Method to train, with its settings; afterwards ``method.result()`` is the best network.
        fabric: Device, precision and processes.
        evaluate: Evaluates the network every ``evaluate_every`` steps; None to keep the last network.
        progress: Callbacks.
        checkpoint: File to resume from, if it exists, and to write to; see `checkpoint_file`. It remains at the end, so
            that a finished training is not repeated: remove it when the result is saved.
        fingerprint: Digest of data and settings. A checkpoint with another one, or a damaged one, is removed with a
            warning, and the training starts from its beginning.
        elapsed: Seconds that the preparation took; they count towards the time limit.

    Returns:
        Course of the training.

    Raises:
        TrainingError: The loss is not finite.
    """
    return _Fit(method, fabric, evaluate, progress or Progress(), checkpoint, fingerprint, elapsed).run()


def checkpoint_file(folder: Path, fingerprint: str) -> Path:
    """File of the checkpoint of a training, beside the folder of its result.

    Args:
        folder: Folder that the network will be written to.
        fingerprint: Digest of data and settings, hexadecimal.
    """
    return folder.with_name(f"{folder.name}.{fingerprint[:_NAME_DIGITS]}.checkpoint")


def remove_checkpoints(folder: Path, *, keep: Path | None = None) -> list[Path]:
    """Remove the checkpoints of a folder, of all fingerprints.

    Args:
        folder: Folder that the network is written to.
        keep: The one to keep.

    Returns:
        Those removed.
    """
    name = re.compile(rf"{re.escape(folder.name)}(\.[0-9a-f]{{{_NAME_DIGITS}}})?\.checkpoint", re.ASCII)
    beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
    found = [path for path in beside if name.fullmatch(path.name) and path != keep]
    for path in found:
        path.unlink(missing_ok=True)
    return found


_NAME_DIGITS = 16


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors, numbers, strings, lists and dicts atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        torch.save(state, file)


def read_checkpoint(path: Path, *, fingerprint: str) -> dict[str, Any]:
    """Read a state written by `write_checkpoint`; nothing in the file is executed.

    Raises:
        TrainingError: The file is damaged, or of a run with another fingerprint.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        written = state["fingerprint"]
    except Exception as error:  # PyTorch's message recommends an unsafe way to load the file
        raise TrainingError(f"Expected a checkpoint in {path}, it is damaged or another file.") from error
    if written != fingerprint:
        raise TrainingError(f"Checkpoint {path} was written by a run with other settings or data.")
    return dict(state)


@dataclass
class _Fit:
    """State of a training; the first fields are the arguments of `fit`."""

    method: TrainingMethod
    fabric: Fabric
    evaluate: Evaluate | None
    progress: Progress
    checkpoint: Path | None
    fingerprint: str
    seconds: float

    def __post_init__(self) -> None:
        tune_allocator()
        self.settings = self.method.settings
        self.method.to(memory_format=torch.channels_last)
        groups = [group | {"peak": group["lr"]} for group in self.method.parameter_groups()]
        on_cpu = self.fabric.device.type == "cpu"  # the fused optimizer does not support 16-bit precision on GPUs
        optimizer = torch.optim.AdamW(groups, weight_decay=self.settings.weight_decay, fused=on_cpu, foreach=not on_cpu)
        self.module, self.optimizer = self.fabric.setup(self.method, optimizer)
        self.step = 0
        self.evaluations: dict[int, dict[str, float]] = {}
        self.best: dict[str, torch.Tensor] | None = None
        self.best_step, self.best_score = 0, -math.inf
        self.stopped = ""

    def run(self) -> TrainingResult:
        self._resume()
        start, before = time.monotonic(), self.seconds
        while not self.stopped:
            self._take_step()
            self.seconds = self._shared(before + time.monotonic() - start)
            self.stopped = self._stop_reason()
            if self.stopped or self.step % self.settings.evaluate_every == 0:
                self._evaluate()
                self.stopped = self.stopped or self._patience_ended()
            if self.stopped or self.step % self.settings.checkpoint_every == 0:
                self._save()
        if self.best is not None:
            self.method.result().load_state_dict(self.best)
        return TrainingResult(self.step, self.best_step, self.seconds, self.stopped, self.evaluations)

    def _take_step(self) -> None:
        fabric, progress = self.fabric, _progress(self.step, self.seconds, self.settings)
        self.method.before_step(progress, fabric)
        self.method.train()
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * _schedule(self.step, self.seconds, self.settings)
        batch = self.method.batch(self.step, rank=fabric.global_rank, world=fabric.world_size)
        losses = self.module(fabric.to_device(batch), progress)
        self.optimizer.zero_grad(set_to_none=True)
        fabric.backward(losses["total"])
        # separately for segmenter and classifiers: large gradients of these must not shrink those of the segmenter
        segmenter = self.method.network
        fabric.clip_gradients(
            segmenter, self.optimizer, max_norm=self.settings.grad_clip_norm, error_if_nonfinite=False
        )
        for group in self.optimizer.param_groups[1:]:
            torch.nn.utils.clip_grad_norm_(group["params"], self.settings.grad_clip_norm)
        values = {name: self._mean(value) for name, value in losses.items()}
        if not math.isfinite(values["total"]):
            raise TrainingError(
                f"The loss became {values['total']} at step {self.step + 1} ({values}): lower learning_rate, or the "
                "weights lambda_image and lambda_feature."
            )
        self.optimizer.step()
        self.method.after_step(self.step)
        self.step += 1
        self.progress.on_step(self.step, values)

    def _mean(self, value: torch.Tensor) -> float:
        """Mean over the processes."""
        reduced = self.fabric.all_reduce(value.detach(), reduce_op="mean")
        assert isinstance(reduced, torch.Tensor)
        return float(reduced)

    def _shared(self, seconds: float) -> float:
        """Clock of the first process, where the learning rate and the end depend on it."""
        return seconds if self.settings.max_minutes is None else self.fabric.broadcast(seconds)

    def _stop_reason(self) -> str:
        if self.step >= self.settings.steps:
            return "steps"
        if self.settings.max_minutes is not None and self.seconds >= 60 * self.settings.max_minutes:
            return "minutes"
        return ""

    def _evaluate(self) -> None:
        network = copy.deepcopy(self.method.result()).eval()
        metrics: dict[str, float] = {}
        if self.evaluate is not None and self.fabric.is_global_zero:
            # plain floats: a checkpoint with NumPy's could not be loaded
            metrics = {name: float(value) for name, value in self.evaluate(network).items()}
        metrics = self.fabric.broadcast(metrics)
        score = metrics.get("score", float(self.step))
        if metrics:
            self.evaluations[self.step] = metrics
            self.progress.on_evaluation(self.step, metrics)
        if score >= self.best_score or self.best is None:  # of equal ones the last; nan is never better
            self.best_score, self.best_step = -math.inf if math.isnan(score) else score, self.step
            self.best = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}

    def _patience_ended(self) -> str:
        waited = (self.step - self.best_step) // self.settings.evaluate_every
        return "patience" if 0 < self.settings.patience <= waited else ""

    def _save(self) -> None:
        if self.checkpoint is None or not self.fabric.is_global_zero:
            return
        state: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "step": self.step,
            "seconds": self.seconds,
            "evaluations": self.evaluations,
            "best": self.best,
            "best_step": self.best_step,
            "best_score": self.best_score,
            "stopped": self.stopped,
        }
        write_checkpoint(self.checkpoint, state)

    def _resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        try:
            state = read_checkpoint(self.checkpoint, fingerprint=self.fingerprint)
        except TrainingError as error:
            _log.warning("%s It was removed, and this training starts from its beginning.", error)
            self.fabric.barrier()  # until all processes have read it
            if self.fabric.is_global_zero:
                self.checkpoint.unlink(missing_ok=True)
            return
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.step, self.seconds, self.evaluations = state["step"], state["seconds"], state["evaluations"]
        self.best, self.best_step, self.best_score = state["best"], state["best_step"], state["best_score"]
        self.stopped = state["stopped"]


def _progress(step: int, seconds: float, settings: FitSettings) -> float:
    """Completed fraction of the training, by steps or by time, whichever is larger."""
    timed = 0.0 if settings.max_minutes is None else min(1.0, seconds / (60 * settings.max_minutes))
    return max(step / settings.steps, timed)


def _schedule(step: int, seconds: float, settings: FitSettings) -> float:
    """Fraction of the peak learning rate: linear warm-up, then a cosine to 1 % at the end of the steps or the time."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    if settings.max_minutes is not None:
        progress = max(progress, min(1.0, seconds / (60 * settings.max_minutes)))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
