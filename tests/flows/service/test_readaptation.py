"""Two labs adapted from one base in one night: promoting the one makes the other candidate outdated."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from flows.service import readaptation as module
from microseg.config.settings import load_settings
from microseg.datasets.onboarding import Onboarding
from microseg.registry.candidates import outdated_candidates
from microseg.registry.version import ModelVersion

BASE = ModelVersion(1, "run-1", None, (), {}, {"lab_a": "1"}, datetime.now(UTC), "")
LAB_B = replace(BASE, version=2, run_id="run-2", datasets={"lab_a": "1", "lab_b": "2"}, aliases=("production",))
LAB_C = replace(BASE, version=3, run_id="run-3", datasets={"lab_a": "1", "lab_c": "3"}, aliases=("candidate-lab_c",))


def registry_of(active: ModelVersion) -> Any:
    return SimpleNamespace(
        production=SimpleNamespace(active=lambda: active),
        versions=SimpleNamespace(
            get={version.version: version for version in (LAB_C, LAB_B, BASE)}.__getitem__,
            aliases=lambda: {alias: version.version for version in (LAB_C, LAB_B) for alias in version.aliases},
        ),
    )


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def make(onboarding: Onboarding | None) -> Any:
        desk = SimpleNamespace(events=[], emitted=[], stored=[], notes=[])
        store = SimpleNamespace(
            read=lambda _: onboarding, write=lambda one, **changes: desk.stored.append(replace(one, **changes))
        )
        registry = registry_of(LAB_B)
        registry.mark_outdated = lambda version, reason: desk.notes.append((version.version, reason))
        workspace = SimpleNamespace(registry=registry, onboarding=store)
        monkeypatch.setattr(module, "open_workspace", lambda _: workspace)
        monkeypatch.setattr(module, "notify", lambda *event, identity: desk.events.append((*event, identity)))
        monkeypatch.setattr(module, "emit", lambda *event: desk.emitted.append(event))
        monkeypatch.setattr(module, "PREFECT_API_URL", SimpleNamespace(value=lambda: "http://127.0.0.1:1/api"))
        return desk

    return make


def test_candidate_that_lacks_a_lab_of_production_is_outdated() -> None:
    [outdated] = outdated_candidates(registry_of(LAB_B))
    assert str(outdated) == (
        "Version 3, the candidate for lab_c, was not adapted to lab_b, and version 2, in production since, was: "
        "promoting it would lose lab_b. To keep all labs: microseg adapt lab_c"
    )
    assert outdated_candidates(registry_of(BASE)) == ()


def test_people_are_notified_once(desk: Callable[..., Any]) -> None:
    made = desk(None)
    first, second = (module.report_outdated_candidates(load_settings()) for _ in range(2))
    assert first == second
    assert "would lose lab_b" in first[0]
    (name, _, payload, identity), again = made.events
    assert (name, payload["version"], payload["lab"]) == ("microseg.candidate.outdated", 3, "lab_c")
    assert again[-1] == identity  # Prefect's server keeps one
    assert made.emitted == []
    assert made.notes == [(3, first[0])] * 2


@pytest.mark.parametrize(
    ("state", "candidate", "restarted"), [("completed", 3, 1), ("completed", 4, 0), ("failed", 3, 0)]
)
def test_labs_are_adapted_to_again_if_so_set(
    desk: Callable[..., Any], state: Any, candidate: int, restarted: int
) -> None:
    made = desk(Onboarding("lab_c", "/incoming/lab_c", "f", state, candidate=candidate))
    module.report_outdated_candidates(load_settings(("promotion.adapt_again=true",)))
    assert len(made.emitted) == len(made.stored) == restarted
    for onboarding in made.stored:
        assert (onboarding.state, onboarding.candidate) == ("pending", None)
