"""Reads the parameters and the environment.

The value of a parameter is the first that is given: by ``--set section.name=value``, by an environment variable
``MICROSEG_SECTION__NAME``, in the file of parameters, as the default in `microseg.config.params` or
`microseg.config.training_params`. The file is the one that ``MICROSEG_PARAMS`` names, else ``params.yaml`` in the
current folder, else the one beside a home that was found above the current folder; it is optional.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from microseg.config.environment import Environment, Home
from microseg.config.params import (
    DataSettings,
    DemoSettings,
    GateSettings,
    InferenceSettings,
    OnboardingSettings,
    OutOfDistributionSettings,
    PromotionSettings,
    ScheduleSettings,
)
from microseg.config.section import Section
from microseg.config.training_params import AdaptSettings, NetworkSettings, TrainSettings
from microseg.errors import ParseError, SettingsError
from microseg.parsing import parse_yaml, read_text

__all__ = ["Params", "Settings", "load_settings"]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Params(Section):
    """All parameters."""

    seed: int = Field(0, ge=0)
    """Seed of splits, crops, color changes and initial weights."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device of training and inference; ``auto`` takes a GPU where there is one."""
    devices: PositiveInt = 1
    """Processes or GPUs of one machine that share a training."""
    timeout_minutes: PositiveFloat = 120
    """Minutes that a process of a training waits for another one, for example for its evaluation."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """Precision of training, by the names of Lightning Fabric; ``auto``: bf16-mixed, and TF32 for float32, on CUDA,
    32-true elsewhere."""
    notify: Annotated[tuple[SecretStr, ...], BeforeValidator(_as_list)] = ()
    """Where failures, candidates that wait, reverted promotions and batches out of distribution are reported: addresses
    of Apprise, such as ``mailto://``, ``slack://``, ``msteams://``, ``json://``; one, or a list."""
    data: DataSettings = DataSettings()
    network: NetworkSettings = NetworkSettings()
    train: TrainSettings = TrainSettings()
    adapt: AdaptSettings = AdaptSettings()
    gate: GateSettings = GateSettings()
    inference: InferenceSettings = InferenceSettings()
    out_of_distribution: OutOfDistributionSettings = OutOfDistributionSettings()
    demo: DemoSettings = DemoSettings()
    onboarding: OnboardingSettings = OnboardingSettings()
    promotion: PromotionSettings = PromotionSettings()
    schedule: ScheduleSettings = ScheduleSettings()


class Settings(Section):
    """The parameters and the environment of a run."""

    environment: Environment
    params: Params
    params_file: Path | None
    """File that the parameters were read from; None for the defaults."""

    def __hash__(self) -> int:
        """Equal settings have the same hash; parameters may be mappings, which have none."""
        return hash(self.model_dump_json())

    @property
    def home(self) -> Home:
        """The folders below ``MICROSEG_HOME``."""
        return self.environment.home

    @property
    def drop_folder(self) -> Path:
        """Folder in which the labs' incoming datasets arrive."""
        return self.home.root / self.params.onboarding.drop_folder

    @property
    def onboarding_records(self) -> Path:
        """Folder of the states of onboardings."""
        return self.params.onboarding.records or self.home.records / "onboarding"

    @property
    def allowed_roots(self) -> tuple[Path, ...]:
        """Folders that events may name, and that links in an incoming dataset may lead to."""
        return (self.drop_folder, self.home.root / self.params.schedule.folder, *self.params.data.allowed_roots)


def load_settings(changes: Sequence[str] = ()) -> Settings:
    """Read the environment and the parameters.

    Args:
        changes: Values that override those of the file, as ``section.name=value`` with a YAML value.

    Raises:
        SettingsError: The file is missing or not YAML, or a value is unknown or out of range.
    """
    environment = Environment()
    file = _params_file(environment)
    values = {} if file is None else _read_yaml(file)
    variables = _variables()
    for name, text in variables.items():
        _override(values, f"{name.removeprefix('MICROSEG_').lower().replace('__', '.')}={text}", name)
    for change in changes:
        _override(values, change, f"--set {change}")
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        errors = "\n".join(f"  {_describe(detail)}" for detail in error.errors())
        origin = [str(file or "parameters"), *variables, *(["with --set", *changes] if changes else [])]
        raise SettingsError(f"{' '.join(origin)}: these values are invalid; correct them:\n{errors}") from error
    return Settings(environment=environment, params=params, params_file=file)


def _params_file(environment: Environment) -> Path | None:
    file = environment.microseg_params
    if file is None:
        places = [Path("params.yaml")]
        if "microseg_home" not in environment.model_fields_set:
            places.append(environment.microseg_home.with_name("params.yaml"))
        return next((place for place in places if place.is_file()), None)
    if not file.is_file():
        raise SettingsError(
            f"MICROSEG_PARAMS: expected a file of parameters at {file.absolute()}, found none. Correct the path, or "
            "unset it to use params.yaml of the current folder or the defaults."
        )
    return file


def _variables() -> dict[str, str]:
    """Environment variables that give a parameter, such as ``MICROSEG_TRAIN__STEPS`` or ``MICROSEG_SEED``."""
    names = {f"MICROSEG_{name.upper()}" for name in Params.model_fields}
    return {
        name: text
        for name, text in sorted(os.environ.items())
        if text and name.startswith("MICROSEG_") and ("__" in name or name in names)
    }


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(read_text(file)) or {}
    except ParseError as error:
        raise SettingsError(f"{file}: expected YAML in UTF-8, got: {_bare(error)}. Correct it there.") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{file}: expected sections with values, got {type(values).__name__}. Write name: value.")
    return {name: value for name, value in values.items() if value is not None}  # null: all of it commented out


def _override(values: dict[str, Any], change: str, origin: str) -> None:
    name, separator, text = change.partition("=")
    if not separator:
        raise SettingsError(f"--set: expected section.name=value, for example train.steps=500, got {change!r}.")
    try:
        value = parse_yaml(text)
    except ParseError as error:
        raise SettingsError(
            f"{origin}: expected a YAML value for {name}, such as [0.8, 1.25], got {text!r}."
        ) from error
    *path, last = name.split(".")
    for part in path:
        section = values.setdefault(part, {})
        if not isinstance(section, dict):
            raise SettingsError(f"{origin}: {part} is a value, not a section. Remove what follows it.")
        values = section
    values[last] = value


def _bare(error: ParseError) -> str:
    return str(error).removeprefix("expected YAML, got: ")


def _describe(detail: ErrorDetails) -> str:
    """One line on one value: what was expected and what was found."""
    name = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        section: Any = Params
        for part in detail["loc"][:-1]:
            section = section.model_fields[part].annotation
        return f"{name}: unknown parameter, expected one of {', '.join(section.model_fields)}"
    if detail["type"] == "value_error":
        return f"{name}: {detail['msg']}".removeprefix(": ").replace("Value error, ", "")
    return f"{name}: {detail['msg']}, got {detail['input']!r}"
