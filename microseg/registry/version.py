"""A version of the registered model, and the names of models, aliases, tags and files in MLflow."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # MLflow takes seconds
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

__all__ = [
    "CANDIDATE",
    "CARD_FILE",
    "DATASET_TAG",
    "EXPERIMENT",
    "EXTRA_FILES",
    "MODEL_ID_TAG",
    "MODEL_NAME",
    "NOTE_TAG",
    "PREVIOUS",
    "PRODUCTION",
    "REFERENCE_FILE",
    "SOURCE_TAG",
    "TAG_LENGTH",
    "TARGET_TAG",
    "ModelVersion",
    "VersionRef",
    "candidate_of",
    "file_tag",
    "is_candidate",
    "is_production",
    "lab_of",
    "make_version",
    "previous_of",
    "production_of",
    "read_version",
    "resembles_production",
]

EXPERIMENT = "microseg"
MODEL_NAME = "microseg-segmenter"

PRODUCTION = "production"
CANDIDATE = "candidate"
PREVIOUS = "previous"

DATASET_TAG = "dataset."
MODEL_ID_TAG = "model_id"
SOURCE_TAG = "adapt.source"
TARGET_TAG = "target"  # the lab that a version was adapted to
NOTE_TAG = "mlflow.note.content"  # shown as the description of a run or of a logged model

CARD_FILE = "model_card.md"
REFERENCE_FILE = "reference_distribution.json"
EXTRA_FILES = "extra_files"  # folder of a model's additional files in MLflow

TAG_LENGTH = 5000  # characters of a tag's value that MLflow's database stores


@dataclass(frozen=True)
class ModelVersion:
    """A registered version of the segmenter.

    Args:
        version: Number of the version, from 1.
        run_id: The run that trained it.
        model_id: ID of the logged model, whose page shows the metrics; None if there is none.
        aliases: Such as ``"production"``; sorted.
        tags: Such as ``method``, ``commit``, ``mpp``, ``classes``, ``dataset.<lab>``.
        datasets: Digest of the dataset of each lab that it was trained with.
        created: Time of the registration, in UTC.
        description: The model card, in Markdown.
    """

    version: int
    run_id: str
    model_id: str | None
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    datasets: Mapping[str, str]
    created: datetime
    description: str

    @property
    def uri(self) -> str:
        """The model URI in MLflow."""
        return f"models:/{MODEL_NAME}/{self.version}"

    @property
    def source_free(self) -> bool:
        """Whether it was adapted without source images: these may not be on this machine."""
        return self.tags.get(SOURCE_TAG) == "none"


VersionRef = ModelVersion | int | str


def file_tag(file: str) -> str:
    """Return the tag of a version that has the SHA-256 of one of its files."""
    return f"sha256.{file}"


def production_of(lab: str | None) -> str:
    """Return the alias of the version in production for one lab, ``production-<lab>``, or for all: ``production``."""
    return PRODUCTION if lab is None else f"{PRODUCTION}-{lab}"


def previous_of(alias: str) -> str:
    """Return the alias of the version to roll back to, for ``production`` or ``production-<lab>``."""
    return PREVIOUS + alias.removeprefix(PRODUCTION)


def is_production(alias: str) -> bool:
    """Whether an alias is one of production: for all labs, or for one."""
    return alias == PRODUCTION or alias.startswith(f"{PRODUCTION}-")


def resembles_production(alias: str) -> bool:
    """Whether an alias is one of production, or may be meant to be one: ``Production``, ``production-typo``."""
    return alias.strip().casefold().startswith(PRODUCTION)


def lab_of(alias: str) -> str | None:
    """Return the lab of an alias ``production-<lab>``; None for ``production``."""
    return None if alias == PRODUCTION else alias.removeprefix(f"{PRODUCTION}-")


def candidate_of(lab: str) -> str:
    """Return the alias of the version that was adapted to a lab last, and is not in production: ``candidate-<lab>``."""
    return f"{CANDIDATE}-{lab}"


def is_candidate(alias: str) -> bool:
    """Whether an alias is that of a candidate."""
    return alias == CANDIDATE or alias.startswith(f"{CANDIDATE}-")  # the former: of microseg 0.1


def read_version(entry: "MlflowVersion", aliases: Mapping[str, str | int]) -> ModelVersion:
    """Convert MLflow's entity of a version.

    Args:
        entry: The entity; its list of aliases is not always filled.
        aliases: All aliases of the registered model, with the number of their version.
    """
    number, numbers = int(entry.version), {alias: int(version) for alias, version in aliases.items()}
    return make_version(number, entry.run_id, entry.creation_timestamp, entry.description, dict(entry.tags), numbers)


def make_version(
    number: int,
    run_id: str | None,
    created: int,
    description: str | None,
    tags: Mapping[str, str],
    aliases: Mapping[str, int],
) -> ModelVersion:
    """A version from what MLflow stores.

    Args:
        number: Its number.
        run_id: The run that trained it.
        created: Time of the registration, in milliseconds.
        description: The model card.
        tags: Its tags.
        aliases: All aliases of the registered model, with the number of their version.
    """
    return ModelVersion(
        version=number,
        run_id=run_id or "",
        model_id=tags.get(MODEL_ID_TAG),
        aliases=tuple(sorted(alias for alias, version in aliases.items() if version == number)),
        tags=tags,
        datasets={key.removeprefix(DATASET_TAG): tags[key] for key in sorted(tags) if key.startswith(DATASET_TAG)},
        created=datetime.fromtimestamp(created / 1000, UTC),
        description=description or "",
    )
