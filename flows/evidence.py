"""The evidence of an evaluation: what it was measured on, its local copies, and where they lack, those in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flows.workspace import Workspace, open_workspace
from microseg.config.settings import Settings
from microseg.files import file_sha256
from microseg.registry.evidence import EvidenceKey
from microseg.registry.evidence_store import EVIDENCE_FOLDER
from microseg.registry.version import ModelVersion

if TYPE_CHECKING:  # PyTorch takes seconds
    from microseg.evaluation.comparison import Comparison
    from microseg.report.pictures import Picture

__all__ = ["PICTURES_FILE", "evaluation_folder", "evidence_key", "read_comparison", "read_pictures"]

PICTURES_FILE = "pictures.json"
"""The pictures of an evaluation, for the page of the decision."""

_FORMAT = 2  # raise it when an evaluation measures something else: earlier evidence does not count then


def evidence_key(
    workspace: Workspace, version: ModelVersion, other: ModelVersion | None, lab: str | None
) -> EvidenceKey:
    """What a comparison of two versions is measured on, from now on.

    Args:
        workspace: The workspace.
        version: The candidate.
        other: The version that it is compared with.
        lab: The target lab; None if there is none.
    """
    datasets = dict(version.datasets)
    if lab is not None:
        datasets.setdefault(lab, workspace.lab(lab, None)[1])
    inference = workspace.settings.params.inference
    return EvidenceKey(
        candidate=_model_id(workspace, version),
        production=None if other is None else _model_id(workspace, other),
        lab=lab,
        datasets=datasets,
        settings={
            "format": _FORMAT,
            "min_target_slides": workspace.settings.params.gate.min_target_slides,
            "tile_size": inference.tile_size,
            "halo": inference.halo,
        }
        | ({"split_touching": inference.split_touching} if inference.split_touching else {}),
    )


def evaluation_folder(key: EvidenceKey, settings: Settings) -> Path:
    """Folder of the local copies of an evaluation."""
    return settings.home.runs / "evaluate" / key.digest


def read_comparison(
    candidate: ModelVersion, against: ModelVersion | None, settings: Settings, lab: str | None = None
) -> Comparison | None:
    """Return the result of an earlier evaluation of these two versions, on any machine; None if there is none.

    Args:
        candidate: The candidate.
        against: The version that it was compared with.
        settings: Settings of this run.
        lab: Target lab; the one that the candidate was adapted to by default.
    """
    from microseg.evaluation.comparison import Comparison

    workspace = open_workspace(settings)
    candidate = workspace.registry.versions.find(candidate.version)  # with its tags of now
    key = evidence_key(workspace, candidate, against, lab or candidate.tags.get("target"))
    cache = evaluation_folder(key, settings) / "comparison.json"
    content = workspace.registry.evidence.read(candidate, key, cache)
    return None if content is None else Comparison.from_json(content)


def read_pictures(version: ModelVersion, key: EvidenceKey, settings: Settings) -> list[Picture]:
    """The pictures of an evaluation, of this machine or of another one; none where it drew none."""
    from microseg.report.pictures import pictures_from_json

    file = evaluation_folder(key, settings) / PICTURES_FILE
    if not file.is_file():
        stored = f"{EVIDENCE_FOLDER}/{key.digest}/{PICTURES_FILE}"
        if not open_workspace(settings).registry.attachments.download(version, stored, file):
            return []
    try:
        return pictures_from_json(file.read_bytes())
    except ValueError:  # of another microseg; they are drawn again by the next evaluation
        return []


def _model_id(workspace: Workspace, version: ModelVersion) -> str:
    """ID of a version's model with the hash of its weights: tags can be copied to another model."""
    from microseg.models.config import WEIGHTS_FILE

    folder = workspace.registry.versions.download(version, workspace.settings.home.models)
    return f"{version.model_id or version.run_id}:{file_sha256(folder / WEIGHTS_FILE)}"
