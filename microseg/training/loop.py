"""The training loop: optimize, average, evaluate, keep the best network, write checkpoints, resume from them."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from microseg.cpu import tune_allocator
from microseg.errors import TrainingError
from microseg.models.network import PyramidSegmenter
from microseg.training.checkpoints import read_checkpoint, write_checkpoint
from microseg.training.devices import (
    Progress,
    fastest_convolutions,
    random_states,
    restore_random_states,
    tf32,
)
from microseg.training.loading import BatchLoader, worker_count
from microseg.training.method import TrainingMethod
from microseg.training.schedule import learning_rate_factor, stop_reason, training_progress

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Evaluate", "TrainingResult", "fit"]

_log = logging.getLogger(__name__)

Evaluate = Callable[[PyramidSegmenter], Mapping[str, float]]
"""Metrics of a network; ``score`` among them (higher is better) selects the best one."""


@dataclass(frozen=True)
class TrainingResult:
    """Course of a training.

    Attributes:
        steps: Number of steps.
        best_step: Step of the network that was kept; 0 where it was not changed.
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


_MANY_STEPS = 1000  # from which cuDNN's search for its fastest algorithms is worth its time


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
        self.settings = self.method.settings
        device = self.fabric.device
        if device.type == "cpu":
            tune_allocator()
        self.on_cuda = device.type == "cuda"
        # a GPU computes while the next steps are prepared, so long as nothing waits for its results
        self.read_every = 1 if device.type == "cpu" else self.settings.log_every
        processes = getattr(self.fabric.strategy, "num_processes", 1)  # on this machine
        self.workers = worker_count(self.settings.workers, device=device, processes=processes)
        self.method.to(memory_format=torch.channels_last)
        if self.settings.compile and self.on_cuda:
            for part in (self.method.network.encoder, self.method.network.pyramid, self.method.network.decoder):
                part.compile()
        groups = [group | {"peak": group["lr"]} for group in self.method.parameter_groups()]
        scaled = getattr(self.fabric.strategy.precision, "scaler", None) is not None  # 16-mixed: not with fused AdamW
        fused = device.type == "cpu" or (self.on_cuda and not scaled)
        optimizer = torch.optim.AdamW(groups, weight_decay=self.settings.weight_decay, fused=fused, foreach=not fused)
        self.module, self.optimizer = self.fabric.setup(self.method, optimizer)
        self.step = 0
        self.evaluations: dict[int, dict[str, float]] = {}
        self.best: dict[str, torch.Tensor] | None = None
        self.best_step, self.best_score = 0, -math.inf
        self.stopped = ""
        self.data_round: int | None = None
        self.loader: BatchLoader | None = None
        self.unread: list[tuple[int, dict[str, torch.Tensor]]] = []

    def run(self) -> TrainingResult:
        self._resume()
        start, before = time.monotonic(), self.seconds
        mixed = self.on_cuda and getattr(self.fabric.strategy.precision, "precision", "") == "bf16-mixed"
        try:
            with tf32(mixed):
                self._train(start, before)
        finally:
            self._close()
        if self.best is not None:
            self.method.result().load_state_dict(self.best)
        return TrainingResult(self.step, self.best_step, self.seconds, self.stopped, self.evaluations)

    def _train(self, start: float, before: float) -> None:
        while not self.stopped:
            self._take_step()
            self._set_clock(before + time.monotonic() - start)
            self.stopped = stop_reason(self.step, self.seconds, self.settings)
            if self.stopped or self.step % self.settings.evaluate_every == 0:
                self._evaluate()
                self.stopped = self.stopped or self._patience_ended()
            if self.stopped or self.step % self.settings.checkpoint_every == 0:
                self._save()

    def _take_step(self) -> None:
        fabric, progress = self.fabric, training_progress(self.step, self.seconds, self.settings)
        batch = self._next_batch(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate_factor(self.step, self.seconds, self.settings)
        with fastest_convolutions(self.on_cuda and self.settings.steps >= _MANY_STEPS):
            losses = self.module(batch, progress)
            self.optimizer.zero_grad(set_to_none=True)
            fabric.backward(losses["total"])
        fabric.clip_gradients(
            self.method.network, self.optimizer, max_norm=self.settings.grad_clip_norm, error_if_nonfinite=False
        )
        self.unread.append((self.step + 1, {name: value.detach() for name, value in losses.items()}))
        read = self._read_losses() if (self.step + 1) % self.read_every == 0 else []
        self.optimizer.step()
        self.method.after_step(self.step)
        self.step += 1
        for step, values in read:
            self.progress.on_step(step, values)

    def _next_batch(self, progress: float) -> Any:
        """Batch of the next step, complete and on the device; from new data where these are due."""
        fabric, number = self.fabric, self.method.data_round(progress)
        if self.loader is None or number != self.data_round:
            self._report_losses()  # data must not be prepared by a network that is not finite
            self._close()
            self.method.before_step(progress, fabric)
            draw = partial(self.method.batch, rank=fabric.global_rank, world=fabric.world_size)
            self.loader = BatchLoader(draw, self.step, self.settings.steps, workers=self.workers, pin=self.on_cuda)
            self.data_round = number
        if not self.method.training:
            self.method.train()
        batch, rank = next(self.loader), fabric.global_rank
        if self.on_cuda:
            return self.method.augment(fabric.to_device(batch), self.step, rank=rank)
        return fabric.to_device(self.method.augment(batch, self.step, rank=rank))

    def _close(self) -> None:
        if self.loader is not None:
            self.loader.close()

    def _read_losses(self) -> list[tuple[int, dict[str, float]]]:
        """Losses of the steps that were not read, mean over the processes; on a GPU this waits for it.

        Raises:
            TrainingError: One is not finite.
        """
        unread, self.unread = self.unread, []
        if not unread:
            return []
        stacked = torch.stack(
            [it.to(self.fabric.device, torch.float32) for _, losses in unread for it in losses.values()]
        )
        reduced = self.fabric.all_reduce(stacked, reduce_op="mean")
        assert isinstance(reduced, torch.Tensor)
        values = iter(reduced.tolist())
        read = [(step, {name: next(values) for name in losses}) for step, losses in unread]
        for step, losses in read:
            if not math.isfinite(losses["total"]):
                raise TrainingError(
                    f"The loss became {losses['total']} at step {step} ({losses}): lower learning_rate, or the weights "
                    "lambda_image and lambda_feature."
                )
        return read

    def _report_losses(self) -> None:
        for step, losses in self._read_losses():
            self.progress.on_step(step, losses)

    def _set_clock(self, seconds: float) -> None:
        """Set the time since the start; of several processes that of the first, where it decides on anything."""
        if self.settings.max_minutes is None or self.fabric.world_size == 1:
            self.seconds = seconds
        elif self.step % self.read_every == 0:
            self.seconds = self.fabric.broadcast(seconds)

    def _evaluate(self) -> None:
        self._report_losses()  # a network that is not finite is never the best one, nor in a checkpoint
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
        self._report_losses()
        if self.checkpoint is None:
            return
        random = random_states(self.fabric)
        if not self.fabric.is_global_zero:
            return
        state: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random,
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
        restore_random_states(self.fabric, state["random"])
        self.step, self.seconds, self.evaluations = state["step"], state["seconds"], state["evaluations"]
        self.best, self.best_step, self.best_score = state["best"], state["best_step"], state["best_score"]
        self.stopped = state["stopped"]
