import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from microseg.config.training_params import TrainSettings
from microseg.errors import TrainingError
from microseg.training import loop
from microseg.training.checkpoints import read_checkpoint
from microseg.training.devices import Progress
from microseg.training.loop import TrainingResult, fit
from microseg.training.method import TrainingMethod


class Slide(TrainingMethod):
    """Two weights with a constant gradient: AdamW moves each by exactly the learning rate."""

    def __init__(self, average: float = 0.0, *, slope: float = 1.0, nan_at: int | None = None) -> None:
        network: Any = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(network.weight)
        super().__init__(network, numbers(ema_decay=average))
        self.slope, self.nan_at = slope, nan_at

    def batch(self, step: int, *, rank: int, world: int) -> torch.Tensor:
        return torch.tensor(float("nan") if step == self.nan_at else 1.0)

    def forward(self, batch: torch.Tensor, progress: float) -> dict[str, torch.Tensor]:
        loss = batch * self.slope * sum(parameter.sum() for parameter in self.network.parameters())
        return {"total": loss, "steepness": torch.tensor(self.slope)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "lr": 0.1}]


def weight(method: TrainingMethod) -> float:
    return next(method.network.parameters())[0, 0].item()


def numbers(**values: Any) -> TrainSettings:
    return TrainSettings(
        **{"steps": 6, "warmup_steps": 0, "weight_decay": 0, "ema_decay": 0, "evaluate_every": 1} | values
    )


def run(method: TrainingMethod, settings: TrainSettings, fabric: Fabric, **values: Any) -> TrainingResult:
    method.settings = settings
    progress = Progress(**{name: values.pop(name) for name in ("on_step", "on_evaluation") if name in values})
    return fit(method, fabric=fabric, progress=progress, **values)


class Scores:
    """An evaluation with given scores, which records the networks it was called with."""

    def __init__(self, *scores: float) -> None:
        self.scores, self.seen, self.training = iter(scores), [], []

    def __call__(self, network: Any) -> Mapping[str, float]:
        self.seen.append(next(network.parameters())[0, 0].item())
        self.training.append(network.training)
        return {"score": next(self.scores), "other": 1.0}


def test_learning_rate_by_hand(fabric: Fabric) -> None:
    method, weights = Slide(), [0.0]
    run(method, numbers(warmup_steps=2), fabric, on_step=lambda _step, _losses: weights.append(weight(method)))
    moved = -np.diff(weights) / 0.1
    expected = [0.5, 1.0]  # the warm-up; then 0.01 + 0.99 · (1 + cos(π p)) / 2 at p = 0, 1/4, 2/4, 3/4
    expected += [1.0, 0.01 + 0.99 * (1 + math.sqrt(0.5)) / 2, 0.505, 0.01 + 0.99 * (1 - math.sqrt(0.5)) / 2]
    np.testing.assert_allclose(moved, expected, rtol=1e-4)


def test_learning_rate_follows_the_time_limit_where_it_ends_first(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 15))  # seconds: 15 a step
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    method, weights = Slide(), [0.0]
    result = run(
        method,
        numbers(steps=1000, max_minutes=1),
        fabric,
        on_step=lambda _step, _losses: weights.append(weight(method)),
    )
    assert (result.steps, result.stopped, result.seconds) == (4, "minutes", 60)
    expected = [0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * seconds / 60)) for seconds in (0, 15, 30, 45)]
    np.testing.assert_allclose(-np.diff(weights) / 0.1, expected, rtol=1e-3)


def test_gradients_are_clipped(fabric: Fabric) -> None:
    method, norms = Slide(slope=100.0), []

    def look(_step: int, _losses: Mapping[str, float]) -> None:
        norms.append(float(torch.cat([it.grad.flatten() for it in method.network.parameters()]).norm()))  # type: ignore[union-attr]

    run(method, numbers(steps=2, grad_clip_norm=0.5), fabric, on_step=look)
    assert norms == pytest.approx([0.5, 0.5], rel=1e-4)


def test_reports_each_step_and_its_losses(fabric: Fabric) -> None:
    reported: list[tuple[int, Mapping[str, float]]] = []
    result = run(Slide(slope=2.0), numbers(steps=3), fabric, on_step=lambda *it: reported.append(it))
    assert [step for step, _ in reported] == [1, 2, 3]
    assert reported[0][1] == {"total": 0.0, "steepness": 2.0}
    assert all(type(value) is float for value in reported[0][1].values())
    assert (result.steps, result.best_step, result.stopped, result.evaluations) == (3, 3, "steps", {})


def test_keeps_the_best_network(fabric: Fabric) -> None:
    method, scores, reported = Slide(), Scores(0.2, 0.9, 0.9, 0.1), []
    result = run(method, numbers(steps=4), fabric, evaluate=scores, on_evaluation=lambda *it: reported.append(it))
    assert result.best_step == 3  # of equal ones the last
    assert weight(method) == scores.seen[2]
    assert len(set(scores.seen)) == 4
    assert not any(scores.training)
    assert [step for step, _ in reported] == [1, 2, 3, 4]
    assert result.evaluations == dict(reported)
    assert result.evaluations[4] == {"score": 0.1, "other": 1.0}


def test_keeps_the_last_network_without_evaluation(fabric: Fabric) -> None:
    method = Slide()
    result = run(method, numbers(steps=3, evaluate_every=2, patience=1), fabric)
    assert (result.best_step, result.stopped) == (3, "steps")
    assert weight(method) < -0.1


def test_nan_score_is_never_the_best(fabric: Fabric) -> None:
    method, scores = Slide(), Scores(math.nan, 0.1, math.nan)
    assert run(method, numbers(steps=3), fabric, evaluate=scores).best_step == 2
    assert weight(method) == scores.seen[1]


def test_evaluates_at_intervals_and_at_the_end(fabric: Fabric) -> None:
    scores = Scores(0.1, 0.2, 0.3)
    assert list(run(Slide(), numbers(steps=5, evaluate_every=2), fabric, evaluate=scores).evaluations) == [2, 4, 5]


def test_patience(fabric: Fabric) -> None:
    scores = Scores(0.5, 0.4, 0.6, 0.6, 0.1, 0.2, 0.9)
    result = run(Slide(), numbers(steps=60, evaluate_every=2, patience=2), fabric, evaluate=scores)
    assert (result.stopped, result.steps, result.best_step) == ("patience", 12, 8)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_result_is_the_evaluated_network(fabric: Fabric, average: float) -> None:
    method, scores = Slide(average), Scores(0.1, 0.2, 0.3)
    run(method, numbers(steps=3, ema_decay=average), fabric, evaluate=scores)
    assert next(method.result().parameters())[0, 0].item() == scores.seen[-1]
    assert (method.result() is method.network) == (average == 0)


def test_loss_that_is_not_finite_stops_before_the_optimizer_step(fabric: Fabric) -> None:
    method, weights = Slide(nan_at=2), []
    with pytest.raises(TrainingError, match=r"became nan at step 3 .*lower learning_rate"):
        run(method, numbers(), fabric, on_step=lambda _step, _losses: weights.append(weight(method)))
    assert weight(method) == weights[-1]
    assert len(weights) == 2


class Accelerated(loop._Fit):
    """A training that reads its losses as one on a GPU does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.read_every = self.settings.log_every


def test_losses_of_a_gpu_are_read_at_intervals_and_before_anything_is_kept(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step is reported once, in order, with its own losses; nothing is read between."""
    monkeypatch.setattr(loop, "_Fit", Accelerated)
    reads: list[int] = []
    original = fabric.all_reduce
    monkeypatch.setattr(
        fabric, "all_reduce", lambda value, **rest: (reads.append(len(value)), original(value, **rest))[1]
    )
    reported: list[tuple[int, float]] = []
    settings = numbers(steps=12, log_every=5, evaluate_every=7)
    scores = Scores(0.1, 0.2)
    run(
        Slide(),
        settings,
        fabric,
        evaluate=scores,
        on_step=lambda step, losses: reported.append((step, losses["total"])),
    )
    assert [step for step, _ in reported] == list(range(1, 13))
    assert len({loss for _, loss in reported}) == 12
    assert reads == [
        2 * 5,
        2 * 2,
        2 * 3,
        2 * 2,
    ]  # two losses a step: steps 1-5, 6-7 to evaluate, 8-10, 11-12 at the end


@pytest.mark.parametrize(("nan_at", "found_at"), [(2, 5), (5, 7)])
def test_what_is_not_finite_is_never_kept(
    fabric: Fabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nan_at: int, found_at: int
) -> None:
    """Neither evaluated nor saved, although the optimizer's steps until it is found are taken."""
    monkeypatch.setattr(loop, "_Fit", Accelerated)
    file, steps, seen = tmp_path / "c", list[int](), list[int]()
    settings = numbers(steps=20, log_every=5, evaluate_every=7, checkpoint_every=7, ema_decay=0.9)
    method = Slide(0.9, nan_at=nan_at)
    original = method.after_step
    monkeypatch.setattr(method, "after_step", lambda step: (steps.append(step + 1), original(step)))
    with pytest.raises(TrainingError, match=rf"became nan at step {nan_at + 1} .*lower learning_rate"):
        run(method, settings, fabric, checkpoint=file, evaluate=lambda _network: seen.append(1) or {"score": 1.0})
    assert (steps[-1], seen, file.exists()) == (found_at if found_at == 7 else found_at - 1, [], False)


def stop_after(step: int) -> Callable[[int, Mapping[str, float]], None]:
    def hook(done: int, _losses: Mapping[str, float]) -> None:
        if done == step:
            raise KeyboardInterrupt

    return hook


@pytest.mark.parametrize("kind", ["supervised", "dual_adaptive"])
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_run_equals_uninterrupted_run(
    kind: str, workers: int, request: pytest.FixtureRequest, fabric: Fabric, tmp_path: Path
) -> None:
    """Exactly: weights, EMA, classifiers, batch-norm statistics, evaluations. Other processes draw the batches."""
    make, file = request.getfixturevalue(kind), tmp_path / "run.checkpoint"
    numbers_ = {
        "steps": 7,
        "warmup_steps": 2,
        "evaluate_every": 3,
        "checkpoint_every": 2,
        "ema_decay": 0.9,
        "source_color_jitter": 0.4,
    }

    def evaluate(network: Any) -> Mapping[str, float]:
        picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return {"score": float(network(picture).std())}

    def train(
        seed: int, checkpoint: Path | None, workers: int, **hooks: Any
    ) -> tuple[TrainingResult, dict[str, torch.Tensor]]:
        method = make(seed, workers=workers, **numbers_)
        result = run(
            method, method.settings, fabric, checkpoint=checkpoint, fingerprint="f", evaluate=evaluate, **hooks
        )
        return result, method.state_dict()

    whole, expected = train(0, None, 0)
    with pytest.raises(KeyboardInterrupt):
        train(0, file, workers, on_step=stop_after(5))
    assert read_checkpoint(file, fingerprint="f")["step"] == 4
    torch.manual_seed(1234)
    steps: list[int] = []
    resumed, got = train(
        1, file, workers, on_step=lambda step, _losses: steps.append(step)
    )  # other weights to start from
    assert steps == [5, 6, 7]
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert resumed.evaluations == whole.evaluations
    assert (resumed.best_step, resumed.steps) == (whole.best_step, whole.steps)


def test_seconds_include_all_resumptions(fabric: Fabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    settings = numbers(steps=4, checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        run(Slide(), settings, fabric, checkpoint=tmp_path / "c", on_step=stop_after(3))
    assert run(Slide(), settings, fabric, checkpoint=tmp_path / "c").seconds == 40


def test_keeps_the_best_network_from_before_the_interruption(fabric: Fabric, tmp_path: Path) -> None:
    settings = numbers(steps=4, checkpoint_every=1)
    before, after = Scores(0.9, 0.2), Scores(0.1, 0.3)
    with pytest.raises(KeyboardInterrupt):
        run(Slide(), settings, fabric, checkpoint=tmp_path / "c", evaluate=before, on_step=stop_after(3))
    method = Slide()
    result = run(method, settings, fabric, checkpoint=tmp_path / "c", evaluate=after)
    assert result.best_step == 1
    assert weight(method) == before.seen[0]
    assert [figures["score"] for figures in result.evaluations.values()] == [0.9, 0.2, 0.1, 0.3]


def test_resumes_with_scores_of_numpy(fabric: Fabric, tmp_path: Path) -> None:
    settings, scores = numbers(steps=4, checkpoint_every=1), Scores(*np.linspace(0, 1, 5))
    with pytest.raises(KeyboardInterrupt):
        run(Slide(), settings, fabric, checkpoint=tmp_path / "c", evaluate=scores, on_step=stop_after(3))
    assert run(Slide(), settings, fabric, checkpoint=tmp_path / "c", evaluate=scores).steps == 4


def test_checkpoint_of_another_run_is_dropped_with_a_warning(
    fabric: Fabric, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings, file = numbers(checkpoint_every=1), tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        run(Slide(), settings, fabric, checkpoint=file, fingerprint="one", on_step=stop_after(2))
    whole = run(Slide(), settings, fabric, fingerprint="another")
    assert run(Slide(), settings, fabric, checkpoint=file, fingerprint="another").steps == whole.steps
    assert "written by a run with other settings or data. It was removed, and this training starts" in caplog.text
    assert read_checkpoint(file, fingerprint="another")["step"] == whole.steps


def test_damaged_checkpoint_is_dropped_with_a_warning(
    fabric: Fabric, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings, file, steps = numbers(steps=4, checkpoint_every=1), tmp_path / "c", list[int]()
    with pytest.raises(KeyboardInterrupt):
        run(Slide(), settings, fabric, checkpoint=file, on_step=stop_after(3))
    file.write_bytes(file.read_bytes()[:100])
    run(Slide(), settings, fabric, checkpoint=file, on_step=lambda step, _: steps.append(step))
    assert steps == [1, 2, 3, 4]
    assert "it is damaged or another file. It was removed" in caplog.text


def test_finished_training_is_not_repeated(fabric: Fabric, tmp_path: Path) -> None:
    settings, file, steps = numbers(steps=4, checkpoint_every=3), tmp_path / "c", list[int]()
    first, second = Slide(), Slide()
    result = run(first, settings, fabric, checkpoint=file)
    assert run(second, settings, fabric, checkpoint=file, on_step=lambda step, _: steps.append(step)) == result
    assert steps == []
    for name, value in first.result().state_dict().items():
        assert torch.equal(value, second.result().state_dict()[name])


def test_weights_gradients_and_moments_have_one_memory_layout(
    dual_adaptive: Callable[..., TrainingMethod], fabric: Fabric, tmp_path: Path
) -> None:
    """On a CPU the fused AdamW iterates over all three in memory order, without checking that their layouts agree."""
    file = tmp_path / "run.checkpoint"
    for progress, steps in ((Progress(on_step=stop_after(3)), 3), (Progress(), 4)):  # the second resumes
        method = dual_adaptive(steps=4, checkpoint_every=2)
        made = loop._Fit(method, fabric, None, progress, file, "f", 0.0)
        with suppress(KeyboardInterrupt):
            made.run()
        assert made.step == steps
        moved = [it for group in made.optimizer.param_groups for it in group["params"]]
        assert len(moved) > 10
        for parameter in moved:
            state = made.optimizer.state[parameter]
            for beside in (parameter.grad, state["exp_avg"], state["exp_avg_sq"]):
                assert beside.stride() == parameter.stride()
