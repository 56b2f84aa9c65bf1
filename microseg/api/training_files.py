"""Files of a training: the network at its end, and until then what an interrupted training resumes from."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from microseg.api.checkpoints import evaluate_checkpoint
from microseg.config.training_params import FitSettings
from microseg.datasets.dataset import LabDataset
from microseg.datasets.manifest import ManifestRow
from microseg.files import file_sha256
from microseg.models.files import save_network, weights_digest
from microseg.models.network import PyramidSegmenter
from microseg.training.checkpoints import checkpoint_file, remove_checkpoints
from microseg.training.devices import Progress
from microseg.training.loop import TrainingResult, fit
from microseg.training.method import TrainingMethod

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor

__all__ = ["FEW_STEPS", "TrainingFiles", "fit_and_save", "training_fingerprint"]

FEW_STEPS = 60
"""Below so many steps, an adaptation makes a segmenter worse; see docs/benchmarks/adaptation.md."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingFiles:
    """Where a training writes.

    Attributes:
        folder: Folder of the network.
        fingerprint: Digest of everything that determines the result; see `training_fingerprint`.
    """

    folder: Path
    fingerprint: str

    @property
    def checkpoint(self) -> Path:
        """File of the checkpoint, beside the folder."""
        return checkpoint_file(self.folder, self.fingerprint)

    @property
    def work(self) -> Path:
        """Folder of decoded images, windows and pseudo-labels, beside the checkpoint."""
        return self.folder.with_name(self.folder.name + ".work")

    def prepare(self, *, keep_work: bool = False) -> None:
        """Remove checkpoints of trainings with other settings or data, and the work of one that cannot be resumed.

        Args:
            keep_work: Keep the work in any case, such as that of other programs that take part in the training.
        """
        for path in remove_checkpoints(self.folder, keep=self.checkpoint):
            _log.warning("The checkpoint %s of an unfinished training with other settings or data was removed.", path)
        if not keep_work and not self.checkpoint.exists():
            self.remove_work()

    def remove_work(self) -> None:
        """Remove the folder of decoded images, windows and pseudo-labels."""
        shutil.rmtree(self.work, ignore_errors=True)


def fit_and_save(
    fabric: Fabric,
    progress: Progress,
    *,
    method: TrainingMethod,
    source: Sequence[LabDataset],
    target: Sequence[LabDataset],
    files: TrainingFiles,
    keep_checkpoint: bool,
    elapsed: float,
    in_use: float | None = None,
    unchanged: Mapping[str, Tensor] | None = None,
) -> TrainingResult:
    """Train in one process and, in the first one, save the network: the unchanged one where time allowed few steps."""
    result = fit(
        method,
        fabric=fabric,
        evaluate=partial(evaluate_checkpoint, source=source, target=target, in_use=in_use),
        progress=progress,
        checkpoint=files.checkpoint,
        fingerprint=files.fingerprint,
        elapsed=elapsed,
    )
    if unchanged is not None and result.stopped == "minutes" and result.steps < FEW_STEPS:
        result = replace(result, best_step=0)
        if fabric.is_global_zero:
            method.result().load_state_dict(unchanged)
            _log.warning(
                "Expected time for at least %d steps of adaptation, the limit of %g minutes allowed %d: fewer make a "
                "segmenter worse, so it was left as it is. Raise adapt.max_minutes.",
                FEW_STEPS,
                method.settings.max_minutes,
                result.steps,
            )
    if fabric.is_global_zero:
        save_network(files.folder, method.result().cpu())
        if not keep_checkpoint:
            files.checkpoint.unlink(missing_ok=True)
        files.remove_work()
    fabric.barrier()
    return result


def training_fingerprint(
    method: type[TrainingMethod],
    network: PyramidSegmenter,
    settings: FitSettings,
    source: Sequence[LabDataset],
    target: Sequence[LabDataset],
    seed: int,
) -> str:
    """Digest of everything that determines the result: method, initial network, settings, images and their splits."""
    inputs = {
        "method": method.__qualname__,
        "network": network.config.model_dump(mode="json"),
        "weights": weights_digest(network),
        "settings": settings.model_dump(mode="json", exclude={"workers", "log_every"}),
        "source": [[(_identity(row), _label_digests(lab, row), row.split) for row in lab.rows] for lab in source],
        "target": [[(_identity(row), _label_digests(lab, row), row.split) for row in lab.rows] for lab in target],
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _identity(row: ManifestRow) -> tuple[object, ...]:
    """What the pixels of a row are."""
    return (row.sha256,) if row.slide is None else (row.sha256, *row.box)


def _label_digests(lab: LabDataset, row: ManifestRow) -> list[str]:
    """SHA-256 of the files of the mask and of the objects' numbers, which corrections change; those that there are."""
    files = [lab.mask_path(row), lab.instances_path(row)] if row.mask is not None else []
    return [file_sha256(file) for file in files if file is not None]
