"""``params.yaml`` and the environment, as frozen settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator
from pydantic_core import ErrorDetails

from microseg.environment import Environment, Home
from microseg.errors import SettingsError
from microseg.inference import HALO, OUTPUTS, SLIDE_MEGAPIXELS, TILE
from microseg.metrics import DriftPolicy
from microseg.model import NetworkConfig, encoder_normalisation
from microseg.registry import GatePolicy
from microseg.training import AdaptSettings, TrainSettings

__all__ = ["DataSettings", "NetworkSettings", "Params", "Settings", "load_settings"]

Share = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSettings(_Section):
    """How a labelled lab is divided, by slide."""

    validation: Share = 0.15
    test: Share = 0.15


class NetworkSettings(_Section):
    """The architecture; classes and microns per pixel come from the labelled lab."""

    encoder: str = "resnet18"
    filters: tuple[PositiveInt, ...] = (32, 64, 128, 256)
    decoder_filters: tuple[PositiveInt, ...] | None = None
    pyramid_bins: tuple[PositiveInt, ...] = (1, 2, 3, 6)
    pyramid_filters: PositiveInt = 128
    weights: str | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "NetworkSettings":
        try:
            self.config(("background", "foreground"), None)
        except ValidationError as error:
            raise ValueError("; ".join(_fault(detail) for detail in error.errors())) from error
        return self

    def config(self, classes: Sequence[str], mpp: float | None) -> NetworkConfig:
        """The network's configuration for these classes and this scale."""
        mean, std = encoder_normalisation(self.encoder)
        chosen = self.model_dump(exclude={"weights"})
        return NetworkConfig(classes=tuple(classes), mpp=mpp, mean=mean, std=std, **chosen)


class InferenceSettings(_Section):
    """How images are segmented, and what is written of them."""

    tile: PositiveInt = TILE
    halo: int = Field(HALO, ge=0)
    batch: PositiveInt = 4
    compile: bool = False
    outputs: tuple[str, ...] = OUTPUTS
    slide_megapixels: float = Field(SLIDE_MEGAPIXELS, gt=0)
    skip_glass: bool = True
    chunk: PositiveInt = 100
    workers: PositiveInt = 1
    cluster: str | None = None

    @model_validator(mode="after")
    def _known_outputs(self) -> "InferenceSettings":
        unknown = sorted(set(self.outputs) - set(OUTPUTS))
        if unknown or not self.outputs:
            raise ValueError(f"outputs: expected some of {list(OUTPUTS)}, got {list(self.outputs)}")
        if 2 * self.halo >= self.tile:
            raise ValueError(f"halo: expected less than half of the tile ({self.tile}), got {self.halo}")
        return self


class DriftSettings(_Section):
    """When images are too far from those that the model knows."""

    max_share: float = Field(DriftPolicy.max_share, ge=0, le=1)
    max_median: PositiveFloat = DriftPolicy.max_median

    @property
    def policy(self) -> DriftPolicy:
        """For the library."""
        return DriftPolicy(self.max_share, self.max_median)


class DemoSettings(_Section):
    """The made labs of ``make demo``."""

    images_a: PositiveInt = 48
    images_b: PositiveInt = 32
    test: PositiveInt = 12
    size: PositiveInt = 256


class ScheduleSettings(_Section):
    """When batches run by themselves, and on which images."""

    segment: str = "0 3 * * *"
    timezone: str = "UTC"
    folder: Path = Path("to-segment")
    again: bool = False
    reconcile: PositiveFloat = 5


class LandingSettings(_Section):
    """Where labs land, and when a delivery counts as being there."""

    folder: Path = Path("incoming")
    settle: float = Field(120, gt=0)


class PromotionSettings(_Section):
    """Who decides on a candidate that a landing has made, and for whose images it is."""

    approval: Literal["mlflow", "prefect", "gate"] = "mlflow"
    per_lab: bool = False


class Params(_Section):
    """All of ``params.yaml``."""

    seed: int = Field(0, ge=0)
    device: str = Field("auto", pattern="^(cpu|cuda|mps|auto)$")
    devices: PositiveInt = 1
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    data: DataSettings = DataSettings()
    network: NetworkSettings = NetworkSettings()
    train: TrainSettings = TrainSettings()
    adapt: AdaptSettings = AdaptSettings()
    gate: GatePolicy = GatePolicy()
    inference: InferenceSettings = InferenceSettings()
    drift: DriftSettings = DriftSettings()
    demo: DemoSettings = DemoSettings()
    landing: LandingSettings = LandingSettings()
    promotion: PromotionSettings = PromotionSettings()
    schedule: ScheduleSettings = ScheduleSettings()


class Settings(_Section):
    """Everything that a flow is told from outside.

    Attributes:
        environment: the places and servers.
        params: the numbers.
        params_file: where they were read.
    """

    environment: Environment
    params: Params
    params_file: Path

    @property
    def home(self) -> Home:
        """The places in microseg's home."""
        return self.environment.home


def load_settings(changes: Sequence[str] = ()) -> Settings:
    """Read the environment and the parameters.

    Args:
        changes: values that replace those of the file, as ``section.name=value`` with a YAML value.

    Raises:
        SettingsError: when the file is missing or not YAML, or a value is unknown or out of range.
    """
    environment = Environment()
    file = _find_params(environment.microseg_params)
    return Settings(environment=environment, params=_read_params(file, changes), params_file=file)


def _find_params(given: Path | None) -> Path:
    places = [given] if given else [Path("params.yaml"), Path(__file__).parent.parent / "params.yaml"]
    for place in places:
        if place.is_file():
            return place
    raise SettingsError(
        f"Expected a file of parameters at {places[0].absolute()}, found none: set MICROSEG_PARAMS to where it is."
    )


def _read_params(file: Path, changes: Sequence[str]) -> Params:
    try:
        values: Any = yaml.safe_load(file.read_text(encoding="utf-8-sig")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: expected YAML in UTF-8, got: {error}. Correct it there.") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{file}: expected sections with values, got {type(values).__name__}. Write name: value.")
    values = {name: value for name, value in values.items() if value is not None}  # a section with all commented out
    for change in changes:
        _change(values, change)
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        faults = "\n".join(f"  {_fault(detail)}" for detail in error.errors())
        given = f" with --set {' '.join(changes)}" if changes else ""
        raise SettingsError(f"{file}{given} has values that cannot be used; correct them:\n{faults}") from error


def _fault(detail: ErrorDetails) -> str:
    """One line on one value: what was expected and what came."""
    name = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known: Any = Params
        for section in detail["loc"][:-1]:
            known = known.model_fields[section].annotation
        return f"{name}: unknown; there are {', '.join(known.model_fields)}"
    if detail["type"] == "value_error":
        return f"{name}: {detail['msg']}".removeprefix(": ").replace("Value error, ", "")
    return f"{name}: {detail['msg']}, got {detail['input']!r}"


def _change(values: dict[str, Any], change: str) -> None:
    name, separator, text = change.partition("=")
    if not separator:
        raise SettingsError(f"Expected section.name=value, for example train.steps=500, got {change!r}.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"Expected a YAML value after {name}=, for example [0.8, 1.25], got {text!r}.") from error
    *path, last = name.split(".")
    for part in path:
        section = values.setdefault(part, {})
        if not isinstance(section, dict):
            raise SettingsError(f"{change!r}: {part} is a value, not a section; leave out what follows it.")
        values = section
    values[last] = value
