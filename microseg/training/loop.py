"""The one training loop: optimize, average, evaluate, keep the best, checkpoint, resume."""

import copy
import math
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
from microseg.models.network import PyramidSegmenter
from microseg.training.checkpoint import read_checkpoint, write_checkpoint
from microseg.training.method import TrainingMethod

__all__ = ["Evaluate", "FitResult", "Hooks", "fit"]

Evaluate = Callable[[PyramidSegmenter], Mapping[str, float]]
"""Judges the network as it is; its entry ``score`` (higher is better) chooses the best."""


@dataclass(frozen=True)
class Hooks:
    """What the caller wants to be told.

    Attributes:
        evaluate: judges the network every so many steps; None takes the last network.
        on_step: called after each step with its number from 1 and its losses.
        on_evaluation: called after each evaluation with the number of the step and the figures.
    """

    evaluate: Evaluate | None = None
    on_step: Callable[[int, Mapping[str, float]], None] = lambda _step, _losses: None
    on_evaluation: Callable[[int, Mapping[str, float]], None] = lambda _step, _figures: None


@dataclass(frozen=True)
class FitResult:
    """How training went.

    Attributes:
        steps: steps taken in all.
        best_step: the step whose network was kept.
        seconds: spent in training, over all resumptions.
        stopped: why it ended: ``steps``, ``minutes`` or ``patience``.
        evaluations: figures by step.
    """

    steps: int
    best_step: int
    seconds: float
    stopped: str
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)


def fit(
    method: TrainingMethod,
    settings: FitSettings,
    *,
    fabric: Fabric,
    hooks: Hooks | None = None,
    checkpoint: Path | None = None,
    fingerprint: str = "",
    spent: float = 0.0,
) -> FitResult:
    """Train until the steps are done, the minutes are over, or patience ends; leave the best network in the method.

    Args:
        method: what to train; at the end ``method.result()`` is the best network.
        settings: the numbers.
        fabric: device, precision and processes.
        hooks: evaluation and reports.
        checkpoint: file to resume from when it is there, and to write on the way. It is left there: remove it when the
            result is kept.
        fingerprint: of data and settings; a checkpoint of another one is refused.
        spent: seconds that preparing took; they count among the minutes.

    Returns:
        The record of the training.

    Raises:
        TrainingError: when the loss is not finite, or the checkpoint does not fit.
    """
    return _Fit(method, settings, fabric, hooks or Hooks(), checkpoint, fingerprint, spent).run()


class _Fit:
    def __init__(
        self,
        method: TrainingMethod,
        settings: FitSettings,
        fabric: Fabric,
        hooks: Hooks,
        checkpoint: Path | None,
        fingerprint: str,
        spent: float,
    ) -> None:
        tune_allocator()
        self.method, self.settings, self.fabric, self.hooks = method, settings, fabric, hooks
        self.checkpoint, self.fingerprint = checkpoint, fingerprint
        method.to(memory_format=torch.channels_last)
        groups = [group | {"peak": group["lr"]} for group in method.parameter_groups()]
        alone = fabric.device.type == "cpu"  # in one pass over the weights; on a card 16 bits do not go with it
        optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=alone, foreach=not alone)
        self.module, self.optimizer = fabric.setup(method, optimizer)
        self.step, self.seconds = 0, spent
        self.evaluations: dict[int, dict[str, float]] = {}
        self.best: dict[str, torch.Tensor] | None = None
        self.best_step, self.best_score = 0, -math.inf

    def run(self) -> FitResult:
        self._resume()
        began, before = time.monotonic(), self.seconds
        stopped = ""
        while not stopped:
            self._take_step()
            self.seconds = self._shared(before + time.monotonic() - began)
            stopped = self._why_stop()
            if stopped or self.step % self.settings.evaluate_every == 0:
                self._judge()
                stopped = stopped or self._patience_ended()
            if not stopped and self.step % self.settings.checkpoint_every == 0:
                self._save()
        if self.best is not None:
            self.method.result().load_state_dict(self.best)
        return FitResult(self.step, self.best_step, self.seconds, stopped, self.evaluations)

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
        # each player by itself: the adversaries' gradients must not shrink the segmenter's
        segmenter = self.method.network
        fabric.clip_gradients(
            segmenter, self.optimizer, max_norm=self.settings.grad_clip_norm, error_if_nonfinite=False
        )
        for group in self.optimizer.param_groups[1:]:
            torch.nn.utils.clip_grad_norm_(group["params"], self.settings.grad_clip_norm)
        figures = {name: self._mean(value) for name, value in losses.items()}
        if not math.isfinite(figures["total"]):
            raise TrainingError(
                f"The loss became {figures['total']} at step {self.step + 1} ({figures}): lower learning_rate, or the "
                "weights lambda_image and lambda_feature."
            )
        self.optimizer.step()
        self.method.after_step(self.step)
        self.step += 1
        self.hooks.on_step(self.step, figures)

    def _mean(self, value: torch.Tensor) -> float:
        """The mean over the processes."""
        reduced = self.fabric.all_reduce(value.detach(), reduce_op="mean")
        assert isinstance(reduced, torch.Tensor)
        return float(reduced)

    def _shared(self, seconds: float) -> float:
        """The first process's clock, where it decides on the learning rate and the end."""
        return seconds if self.settings.max_minutes is None else self.fabric.broadcast(seconds)

    def _why_stop(self) -> str:
        if self.step >= self.settings.steps:
            return "steps"
        if self.settings.max_minutes is not None and self.seconds >= 60 * self.settings.max_minutes:
            return "minutes"
        return ""

    def _judge(self) -> None:
        network = copy.deepcopy(self.method.result()).eval()
        figures: dict[str, float] = {}
        if self.hooks.evaluate is not None and self.fabric.is_global_zero:
            # NumPy's numbers would not be read back
            figures = {name: float(value) for name, value in self.hooks.evaluate(network).items()}
        figures = self.fabric.broadcast(figures)  # what the first process finds decides for all
        score = figures.get("score", float(self.step))
        if figures:
            self.evaluations[self.step] = figures
            self.hooks.on_evaluation(self.step, figures)
        if score > self.best_score or self.best is None:  # nan is never better
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
        }
        write_checkpoint(self.checkpoint, state)

    def _resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        state = read_checkpoint(self.checkpoint, fingerprint=self.fingerprint)
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.step, self.seconds, self.evaluations = state["step"], state["seconds"], state["evaluations"]
        self.best, self.best_step, self.best_score = state["best"], state["best_step"], state["best_score"]


def _progress(step: int, seconds: float, settings: FitSettings) -> float:
    """The share of the training that lies behind, by steps or by minutes, whichever is further."""
    progress = step / settings.steps
    if settings.max_minutes is not None:
        progress = max(progress, min(1.0, seconds / (60 * settings.max_minutes)))
    return progress


def _schedule(step: int, seconds: float, settings: FitSettings) -> float:
    """The share of the peak learning rate: a linear rise, then a cosine to 1 % at the end of the steps or the
    minutes.
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    if settings.max_minutes is not None:
        progress = max(progress, min(1.0, seconds / (60 * settings.max_minutes)))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
