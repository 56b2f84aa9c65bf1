import pytest

from microseg.config.training_params import TrainSettings
from microseg.training.schedule import learning_rate_factor, stop_reason, training_progress

SETTINGS = TrainSettings(steps=110, warmup_steps=10)
TIMED = SETTINGS.model_copy(update={"max_minutes": 2.0})


@pytest.mark.parametrize(("step", "factor"), [(0, 0.1), (9, 1.0), (10, 1.0), (60, 0.505), (110, 0.01)])
def test_learning_rate_rises_linearly_and_falls_as_a_cosine(step: int, factor: float) -> None:
    assert learning_rate_factor(step, 1e9, SETTINGS) == pytest.approx(factor)


def test_time_limit_counts_where_it_is_nearer_than_the_steps() -> None:
    assert training_progress(11, 30.0, TIMED) == 0.25
    assert training_progress(55, 30.0, TIMED) == 0.5
    assert learning_rate_factor(20, 60.0, TIMED) == pytest.approx(0.505)
    assert learning_rate_factor(20, 1e9, TIMED) == pytest.approx(0.01)
    assert training_progress(11, 1e9, TIMED) == 1.0


@pytest.mark.parametrize(("step", "seconds", "reason"), [(109, 119.9, ""), (110, 0, "steps"), (3, 120, "minutes")])
def test_stop_reason(step: int, seconds: float, reason: str) -> None:
    assert stop_reason(step, seconds, TIMED) == reason
