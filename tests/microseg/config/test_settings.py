from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from microseg.config.environment import Home
from microseg.config.settings import Params, load_settings
from microseg.config.training_params import NetworkSettings
from microseg.errors import SettingsError
from microseg.models.config import NetworkConfig
from microseg.models.network import configure_network

CHECKOUT = Path(__file__).parents[3] / "params.yaml"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes the file of parameters that is used."""
    file = tmp_path / "params.yaml"
    monkeypatch.setenv("MICROSEG_PARAMS", str(file))

    def write(text: str) -> Path:
        file.write_text(text, encoding="utf-8")
        return file

    return write


def error_message(*changes: str) -> str:
    with pytest.raises(SettingsError) as raised:
        load_settings(changes)
    return str(raised.value)


def test_reads_the_file_of_parameters(write: Callable[[str], Path]) -> None:
    file = write("seed: 7\ntrain: {steps: 12, zoom_range: [0.9, 1.1]}\nnetwork: {encoder: blocks, channels: [4, 8]}\n")
    settings = load_settings()
    assert settings.params_file == file
    assert (settings.params.seed, settings.params.train.steps, settings.params.train.zoom_range) == (7, 12, (0.9, 1.1))
    assert settings.params.network.channels == (4, 8)
    assert settings.params.adapt == Params().adapt


@pytest.mark.parametrize("text", ["", "# nothing\n", "train:\nadapt:\n  # steps: 3\n"])
def test_values_that_the_file_does_not_state_are_defaults(write: Callable[[str], Path], text: str) -> None:
    write(text)
    assert load_settings().params == Params()


def test_params_yaml_states_every_default() -> None:
    assert yaml.safe_load(CHECKOUT.read_text(encoding="utf-8")) == Params().model_dump(mode="json")


def test_changes_override_the_file(write: Callable[[str], Path]) -> None:
    write("train: {steps: 12}\n")
    params = load_settings(
        [
            "train.steps=500",
            "train.learning_rate=1e-3",
            "adapt.zoom_range=[0.5, 2]",
            "train.max_minutes=null",
            "device=cpu",
        ]
    ).params
    assert (params.train.steps, params.train.learning_rate, params.adapt.zoom_range) == (500, 0.001, (0.5, 2.0))
    assert (params.train.max_minutes, params.device) == (None, "cpu")
    assert load_settings(["train.steps=1", "train.steps=2"]).params.train.steps == 2


def test_reads_params_yaml_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MICROSEG_PARAMS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert (load_settings().params, load_settings().params_file) == (Params(), None)
    (tmp_path / "params.yaml").write_text("seed: 3\n")
    assert load_settings().params.seed == 3


def test_environment_variables_override_the_file_and_changes_override_them(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("seed: 1\ntrain: {steps: 12}\n")
    monkeypatch.setenv("MICROSEG_SEED", "5")
    monkeypatch.setenv("MICROSEG_TRAIN__STEPS", "50")
    monkeypatch.setenv("MICROSEG_ADAPT__ZOOM_RANGE", "[0.9, 1.2]")
    monkeypatch.setenv("MICROSEG_TRAIN__MAX_MINUTES", "")  # as compose files write what is not set
    params = load_settings().params
    assert (params.seed, params.train.steps, params.adapt.zoom_range) == (5, 50, (0.9, 1.2))
    assert load_settings(["train.steps=7"]).params.train.steps == 7


def test_rejects_environment_variables_of_unknown_parameters(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("")
    monkeypatch.setenv("MICROSEG_TRIAN__STEPS", "3")
    message = error_message()
    assert "MICROSEG_TRIAN__STEPS" in message
    assert "trian: unknown parameter, expected one of seed, device" in message


def test_reads_params_yaml_beside_a_home_found_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MICROSEG_PARAMS", raising=False)
    monkeypatch.delenv("MICROSEG_HOME", raising=False)
    Home(tmp_path / "var").create()
    (tmp_path / "params.yaml").write_text("seed: 3\n")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert load_settings().params.seed == 3


def test_rejects_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROSEG_PARAMS", str(tmp_path / "nowhere.yaml"))
    assert f"MICROSEG_PARAMS: expected a file of parameters at {tmp_path}/nowhere.yaml, found none" in error_message()


def test_unknown_names_are_answered_with_the_valid_ones(write: Callable[[str], Path]) -> None:
    file = write("trian: {steps: 3}\ntrain: {stesp: 3}\n")
    message = error_message("network.encodr=vgg19")
    assert str(file) in message
    assert "--set network.encodr=vgg19" in message
    assert "  trian: unknown parameter, expected one of seed, device" in message
    assert "  train.stesp: unknown parameter, expected one of steps, max_minutes, batch_size" in message
    assert "  network.encodr: unknown parameter, expected one of encoder, channels" in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            "train.steps=many",
            "train.steps: Input should be a valid integer, unable to parse string as an integer, got 'many'",
        ),
        ("train.steps=0", "train.steps: Input should be greater than 0, got 0"),
        (
            "train.steps=1.5",
            "train.steps: Input should be a valid integer, got a number with a fractional part, got 1.5",
        ),
        ("seed=-1", "seed: Input should be greater than or equal to 0, got -1"),
        ("data.test_fraction=1", "data.test_fraction: Input should be less than 1, got 1"),
        (
            "precision=bf16-true",
            "precision: Input should be 'auto', '32-true', 'bf16-mixed' or '16-mixed', got 'bf16-true'",
        ),
        ("device=tpu", "got 'tpu'"),
        ("train.zoom_range=[2, 1]", "train: zoom_range: expected the smaller factor first, got [2.0, 1.0]"),
        ("inference.halo=160", "inference: halo: expected less than a quarter of tile_size (640), got 160"),
        ("network.pyramid_bins=[]", "network.pyramid_bins: Tuple should have at least 1 item"),
    ],
)
def test_rejects_invalid_values(write: Callable[[str], Path], change: str, expected: str) -> None:
    write("adapt: {pseudo_label_rounds: 1}\n")
    message = error_message(change)
    assert "these values are invalid; correct them:\n" in message
    assert expected in message


def test_rejects_an_inconsistent_network_before_training(write: Callable[[str], Path]) -> None:
    write("network: {encoder: blocks, channels: [4, 8], decoder_channels: [8]}\n")
    assert "network: expected 2 decoder_channels, one per encoder block, got 1" in error_message()


def test_reports_every_error_at_once(write: Callable[[str], Path]) -> None:
    write("seed: x\ntrain: {batch_size: 0}\n")
    assert len(error_message("adapt.grl_warmup=3").splitlines()) == 4


@pytest.mark.parametrize("text", ["train: [", "a: b: c", "\tx"])
def test_rejects_invalid_yaml(write: Callable[[str], Path], text: str) -> None:
    file = write(text)
    assert error_message().startswith(f"{file}: expected YAML in UTF-8, got: ")


def test_rejects_other_encodings_than_utf_8(write: Callable[[str], Path]) -> None:
    write("").write_bytes("schedule: {timezone: Zürich}".encode("latin-1"))
    assert "expected YAML in UTF-8" in error_message()


def test_rejects_a_file_without_sections(write: Callable[[str], Path]) -> None:
    write("- train\n")
    assert error_message().endswith("expected sections with values, got list. Write name: value.")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("train.steps", "--set: expected section.name=value, for example train.steps=500, got 'train.steps'."),
        (
            "train.zoom_range=[1",
            "--set train.zoom_range=[1: expected a YAML value for train.zoom_range, such as [0.8, 1.25], got '[1'.",
        ),
        ("seed.x=3", "--set seed.x=3: seed is a value, not a section. Remove what follows it."),
    ],
)
def test_rejects_malformed_changes(write: Callable[[str], Path], change: str, expected: str) -> None:
    write("seed: 1\n")
    assert error_message(change) == expected


def test_changes_a_section_whose_values_are_commented_out(write: Callable[[str], Path]) -> None:
    write("train:\n  # steps: 3\n")
    assert load_settings(["train.steps=4"]).params.train.steps == 4


def test_settings_are_frozen(write: Callable[[str], Path]) -> None:
    write("")
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().params.seed = 3  # type: ignore[misc]


def test_equal_settings_have_one_hash(write: Callable[[str], Path]) -> None:
    write("inference: {stain_vectors: {dab: [0.27, 0.57, 0.78]}}")  # a mapping has none
    assert hash(load_settings()) == hash(load_settings())
    assert len({load_settings(), load_settings(), load_settings(["inference.stain_vectors={}"])}) == 2


def test_network_is_configured_by_settings() -> None:
    settings = NetworkSettings(encoder="blocks", channels=(4, 8), weights="imagenet")
    assert configure_network(settings, ["background", "gland"], 0.5) == NetworkConfig(
        classes=("background", "gland"), encoder="blocks", channels=(4, 8), mpp=0.5
    )
