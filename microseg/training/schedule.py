"""The course of a training, by its steps or its time, whichever is further: progress, learning rate and end."""

import math

from microseg.config.training_params import FitSettings

__all__ = ["learning_rate_factor", "stop_reason", "training_progress"]


def training_progress(step: int, seconds: float, settings: FitSettings) -> float:
    """Completed fraction of a training, 0..1.

    Args:
        step: Number of completed steps.
        seconds: Time since the start.
        settings: Its steps, and its limit of time, if any.
    """
    return max(step / settings.steps, _timed(seconds, settings))


def learning_rate_factor(step: int, seconds: float, settings: FitSettings) -> float:
    """Fraction of the peak learning rate: a linear warm-up, then a cosine to 1 % at the end of the steps or the time.

    Args:
        step: Number of completed steps.
        seconds: Time since the start.
        settings: Its steps, warm-up, and limit of time, if any.
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * max(progress, _timed(seconds, settings))))


def stop_reason(step: int, seconds: float, settings: FitSettings) -> str:
    """Why a training ends here: ``steps`` or ``minutes``; empty where it goes on."""
    if step >= settings.steps:
        return "steps"
    return "minutes" if _timed(seconds, settings) >= 1 else ""


def _timed(seconds: float, settings: FitSettings) -> float:
    return 0.0 if settings.max_minutes is None else min(1.0, seconds / (60 * settings.max_minutes))
