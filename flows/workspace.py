"""The registry, datasets and models of one process: each is opened, verified and loaded once.

PyTorch and MLflow are imported when they are first needed: other commands start quickly.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from microseg.config.environment import sqlite_file
from microseg.config.settings import Settings
from microseg.datasets.dataset import LabDataset, open_lab_dataset
from microseg.datasets.onboarding import OnboardingStore
from microseg.datasets.versions.history import DatasetVersion
from microseg.datasets.versions.store import DatasetStore
from microseg.errors import RemoteUnavailableError, VersioningError, VersionNotFoundError
from microseg.files import file_sha256

if TYPE_CHECKING:
    from microseg.api.segmenter import Segmenter
    from microseg.evaluation.comparison import Comparison
    from microseg.inference.engine import Engine, EngineOptions
    from microseg.models.network import PyramidSegmenter
    from microseg.registry.decision import Decision
    from microseg.registry.evidence import EvidenceKey
    from microseg.registry.registry import Registry
    from microseg.registry.runs import RunLog
    from microseg.registry.sqlite_reader import RegistryReader
    from microseg.registry.version import ModelVersion
    from microseg.training.loop import TrainingResult

_log = logging.getLogger(__name__)

__all__ = ["SOURCE_METHOD", "Workspace", "active_version", "open_workspace"]

SOURCE_METHOD = "supervised"

_NETWORKS = 3  # kept in memory: a candidate, the production model and one more
_EVALUATION_FORMAT = 2  # raise it when an evaluation measures something else: earlier evidence does not count then
_SERVED_TILE = 256  # pixels; `mlflow models serve` takes tiles of this size


@lru_cache(maxsize=4)
def open_workspace(settings: Settings) -> Workspace:
    """Return the workspace of some settings; the same one for the same settings."""
    return Workspace(settings)


class Workspace:
    """The registry, datasets and models that the settings name.

    Args:
        settings: Environment and parameters.

    Raises:
        HomeError: There is no home, or one of another format.
    """

    def __init__(self, settings: Settings) -> None:
        settings.environment.require_home()
        self.settings = settings
        self.datasets = DatasetStore(settings.home.data, settings.environment.dvc_remote)
        self.onboarding = OnboardingStore(settings.onboarding_records)
        self._labs: dict[tuple[str, str], LabDataset] = {}
        self._networks: OrderedDict[str, PyramidSegmenter] = OrderedDict()

    @cached_property
    def registry(self) -> Registry:
        """The model registry."""
        from microseg.registry.registry import Registry

        return Registry(
            self.settings.environment.tracking_uri,
            labs=self._lab_names,
            locks=self.settings.home.records / "runs",
            snapshots=self.settings.home.records / "registry",
        )

    def read_registry(self) -> RegistryReader:
        """Return the model registry, to show it; one in an SQLite file is read once, without MLflow."""
        from microseg.registry.sqlite_reader import SqliteReader

        file = sqlite_file(self.settings.environment.tracking_uri)
        if file is not None and "registry" not in self.__dict__:
            with suppress(sqlite3.Error):  # locked, or of another version of MLflow, which says what to do
                return SqliteReader(file, self._lab_names)
        return self.registry

    def _lab_names(self) -> set[str]:
        names = {path.stem for path in (self.datasets.root / "history").glob("*.jsonl")}
        return names | {onboarding.lab for onboarding in self.onboarding.read_all()}

    def production(self, lab: str | None = None) -> ModelVersion | None:
        """The version in production for a lab's images, or for all; None when there is none."""
        return active_version(self.registry, lab)

    def network(self, version: ModelVersion) -> PyramidSegmenter:
        """Network of a version, loaded once per process; it is shared, so copy it before changing it."""
        from microseg.models.files import load_network

        key = version.run_id or version.uri
        network = self._networks.get(key)
        if network is None:
            network = load_network(self.registry.versions.download(version, self.settings.home.models))
        return self._keep(key, network)

    def _keep(self, key: str, network: PyramidSegmenter) -> PyramidSegmenter:
        self._networks[key] = network
        self._networks.move_to_end(key)
        while len(self._networks) > _NETWORKS:
            self._networks.popitem(last=False)
        return network

    def segmenter(self, version: ModelVersion) -> Segmenter:
        """Segmenter of a version."""
        from microseg.api.segmenter import Segmenter, version_provenance

        return Segmenter(
            self.network(version),
            provenance=version_provenance(version),
            reference=self.registry.versions.reference_distribution(version),
            device=self.settings.params.device,
            **self._engine_options(),
        )

    def engine(self, network: PyramidSegmenter) -> Engine:
        """Inference engine of a network."""
        from microseg.inference.engine import Engine
        from microseg.training.devices import resolve_device

        return Engine(network, device=resolve_device(self.settings.params.device), **self._engine_options())

    def _engine_options(self) -> EngineOptions:
        options = self.settings.params.inference
        return {
            "tile": options.tile_size,
            "halo": options.halo,
            "batch": options.batch_size,
            "compiled": options.compile,
            "split": options.split_touching,
        }

    def lab(self, lab: str, digest: str | None = None) -> tuple[LabDataset, str]:
        """Dataset of a lab at a version, verified once per process.

        Args:
            lab: Name of the lab.
            digest: Version of the dataset; None for the latest.

        Raises:
            VersioningError: There is none.
        """
        if digest is None:
            history = self._history(lab)
            if not history:
                raise VersioningError(f"Expected a dataset of lab {lab!r}, found none: run `microseg ingest` first.")
            digest = history[-1].digest
        if (lab, digest) not in self._labs:
            self._labs[lab, digest] = open_lab_dataset(self.datasets.checkout(lab, digest))
        return self._labs[lab, digest], digest

    def _history(self, lab: str) -> tuple[DatasetVersion, ...]:
        """Versions of a lab's dataset, with those of other machines where the remote can be reached."""
        try:
            return self.datasets.refresh(lab)
        except RemoteUnavailableError as error:
            _log.warning("The latest version of %s on this machine is used: %s", lab, error)
            return self.datasets.history(lab)

    def labs(
        self, digests: Mapping[str, str], *, missing_ok: bool = False
    ) -> tuple[list[LabDataset], list[LabDataset]]:
        """Datasets that a model version was trained on: the labelled labs, and the others.

        Args:
            digests: Version of each lab's dataset.
            missing_ok: Leave out datasets that are neither here nor at the remote, such as those of a source-free
                version.
        """
        labs = []
        for lab, digest in sorted(digests.items()):
            try:
                labs.append(self.lab(lab, digest)[0])
            except VersioningError:
                if not missing_ok:
                    raise
        labelled = [lab for lab in labs if lab.select(split="train", labelled=True)]
        return labelled, [lab for lab in labs if lab not in labelled]

    def register_model(
        self,
        run: RunLog,
        folder: Path,
        training: TrainingResult,
        *,
        source: Sequence[LabDataset],
        target: Sequence[LabDataset] = (),
        digests: Mapping[str, str],
        method: str,
        base: ModelVersion | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> ModelVersion:
        """Register a trained network with its model card, datasets and reference distribution.

        Args:
            run: Run of the training.
            folder: Folder of the trained network.
            training: Course of the training.
            source: Labelled labs.
            target: Unlabelled labs.
            digests: Version of each lab's dataset.
            method: Name of the training method.
            base: Version that it was adapted from, where the datasets of that one were not read.
            tags: Further tags of the version.
        """
        from microseg.datasets.sampling import CropSampler, Sample
        from microseg.evaluation.label_free import fit_reference_distribution
        from microseg.models.files import load_network
        from microseg.registry.model_card import model_card
        from microseg.registry.registration import code_commit

        for role, labs in (("source", source), ("target", target)):
            for lab in labs:
                run.log_dataset(lab.metadata.lab, digests[lab.metadata.lab], self.settings.environment.dvc_remote, role)
        read = {lab.metadata.lab for lab in (*source, *target)}
        for lab_name in sorted(digests.keys() - read):
            run.log_dataset(lab_name, digests[lab_name], self.settings.environment.dvc_remote, "base")
        commit = code_commit(Path(__file__).parent)
        run.log_metrics({"seconds": training.seconds, "steps": training.steps, "best_step": training.best_step})
        run.set_tag("stopped", training.stopped)
        network = self._keep(run.id, load_network(folder))
        config = network.config
        reference = fit_reference_distribution([*source, *target], config.mpp)
        earlier = None if base is None else self.registry.versions.reference_distribution(base)
        run.log_reference_distribution(reference if earlier is None else earlier.updated(reference))
        card = model_card(
            method=method,
            network=config,
            source=source,
            target=target,
            digests=digests,
            run_id=run.id,
            commit=commit,
            run_params=self.registry.runs.params(run.id),
        )
        lab = (*source, *target)[0]
        first = Sample(lab.image(lab.rows[0]))
        tile = CropSampler([first], size=_SERVED_TILE, batch=1, seed=0).draw(0).images[0]  # (3, T, T)
        example = (tile.permute(1, 2, 0) * 255).round().byte().numpy()
        return self.registry.versions.register(
            run,
            folder,
            network=network,
            example=example,
            method=method,
            description=card,
            commit=commit,
            tags=tags,
        )

    def evidence_key(self, version: ModelVersion, other: ModelVersion | None, lab: str | None) -> EvidenceKey:
        """What a comparison of two versions is measured on, from now on.

        Args:
            version: The candidate.
            other: The version that it is compared with.
            lab: The target lab; None if there is none.
        """
        from microseg.registry.evidence import EvidenceKey

        datasets = dict(version.datasets)
        if lab is not None:
            datasets.setdefault(lab, self.lab(lab, None)[1])
        inference = self.settings.params.inference
        return EvidenceKey(
            candidate=self._model_id(version),
            production=None if other is None else self._model_id(other),
            lab=lab,
            datasets=datasets,
            settings={
                "format": _EVALUATION_FORMAT,
                "min_target_slides": self.settings.params.gate.min_target_slides,
                "tile_size": inference.tile_size,
                "halo": inference.halo,
            }
            | ({"split_touching": inference.split_touching} if inference.split_touching else {}),
        )

    def _model_id(self, version: ModelVersion) -> str:
        """ID of a version's model with the hash of its weights: tags can be copied to another model."""
        from microseg.models.config import WEIGHTS_FILE

        folder = self.registry.versions.download(version, self.settings.home.models)
        return f"{version.model_id or version.run_id}:{file_sha256(folder / WEIGHTS_FILE)}"

    def decide(
        self, version: ModelVersion, production: ModelVersion | None, comparison: Comparison, lab: str | None = None
    ) -> Decision:
        """Evaluate the gate on a version; write the decision and the evaluation to its tags and its model card.

        Args:
            version: The evaluated version.
            production: The version in production that it was compared with.
            comparison: The evidence on both.
            lab: The version is for the images of this lab only, so it cannot harm the other labs.
        """
        from microseg.registry.evidence_store import DECISION_PAGE, EVIDENCE_FOLDER
        from microseg.registry.gate import decide
        from microseg.registry.model_card import model_card

        gate = self.settings.params.gate
        lost = sorted(production.datasets.keys() - version.datasets.keys()) if production and lab is None else []
        decision = replace(
            decide(
                comparison.candidate,
                comparison.production,
                gate if lab is None else gate.model_copy(update={"max_source_loss": 1.0, "max_source_f1_loss": 1.0}),
                lost_labs=lost,
            ),
            version=version.version,
            production_version=production.version if production else None,
        )
        source, target = self.labs(version.datasets, missing_ok=version.source_free)
        card = model_card(
            method=version.tags.get("method", "unknown"),
            network=self.network(version).config,
            source=source,
            target=target,
            digests=version.datasets,
            run_params=self.registry.runs.params(version.run_id),
            candidate=comparison.candidate,
            production=comparison.production,
            scores=comparison.scores,
            decision=decision,
            panels=self.registry.attachments.paths(version, EVIDENCE_FOLDER, ".jpg"),
            page=self.registry.attachments.link(version, DECISION_PAGE),
            run_id=version.run_id,
            commit=version.tags.get("commit"),
        )
        self.registry.versions.describe(version, card)
        self.registry.versions.set_tags(version, decision.to_tags())
        return decision


def active_version(registry: RegistryReader, lab: str | None = None) -> ModelVersion | None:
    """The version in production for a lab's images, or for all; None when there is none."""
    try:
        return registry.production.active(lab)
    except VersionNotFoundError:
        return None
