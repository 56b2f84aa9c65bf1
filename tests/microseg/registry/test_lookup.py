"""Finding versions."""

import mlflow
import pytest

from microseg.errors import VersionNotFoundError
from microseg.registry.registry import Registry
from microseg.registry.version import CANDIDATE, MODEL_NAME, PREVIOUS, PRODUCTION


def client_of(registry: Registry) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=registry.tracking_uri, registry_uri=registry.tracking_uri)


@pytest.mark.parametrize("ref", [2, "2", " 2 ", "02"])
def test_by_number(registry: Registry, ref: int | str) -> None:
    assert registry.resolve(ref).version == 2


def test_by_alias(registry: Registry) -> None:
    registry.set_alias("study-7", 1)
    assert registry.resolve("study-7").version == 1
    assert registry.resolve(registry.resolve("study-7")).aliases == ("study-7",)


def test_the_newest_comes_first(registry: Registry) -> None:
    registry.set_alias(PRODUCTION, 1)
    assert [(version.version, version.aliases) for version in registry.versions()] == [(2, ()), (1, (PRODUCTION,))]


@pytest.mark.parametrize(
    ("ref", "advice"),
    [
        (PRODUCTION, "promote one, or set the alias 'production' on it in the MLflow user interface"),
        (CANDIDATE, "adapt to a new lab to get a candidate"),
        (PREVIOUS, "there is nothing to go back to"),
        ("Study", "give one of these numbers or aliases"),
        (3, "give one of these numbers or aliases"),
        (0, "give one of these numbers or aliases"),
        (-1, "give one of these numbers or aliases"),
        ("", "give one of these numbers or aliases"),
    ],
)
def test_what_is_missing_is_told_with_what_there_is(registry: Registry, ref: int | str, advice: str) -> None:
    registry.set_alias("study", 1)
    with pytest.raises(VersionNotFoundError) as caught:
        registry.resolve(ref)
    message = f"expected version {str(ref)!r} of microseg-segmenter, there are 2, 1 (study); {advice}"
    assert str(caught.value).startswith(message)


def test_an_empty_registry_says_to_train(empty: Registry) -> None:
    with pytest.raises(VersionNotFoundError, match="has none yet; train a first model from a labelled lab"):
        empty.resolve(PRODUCTION)
    with pytest.raises(VersionNotFoundError):
        empty.resolve(1)


@pytest.mark.filterwarnings("ignore")
def test_a_version_in_the_legacy_stage_is_production_until_the_alias_is_set(registry: Registry) -> None:
    if not hasattr(mlflow.MlflowClient, "transition_model_version_stage"):
        pytest.skip("this MLflow has no stages any more")
    client_of(registry).transition_model_version_stage(MODEL_NAME, "1", "Production")
    assert registry.resolve(PRODUCTION).version == 1
    with pytest.raises(VersionNotFoundError):
        registry.resolve(CANDIDATE)
    registry.promote(2)
    assert registry.resolve(PRODUCTION).version == 2
    assert registry.resolve(PREVIOUS).version == 1
