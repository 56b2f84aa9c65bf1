"""The registry, datasets and models of one process: each is opened, verified and loaded once.

PyTorch and MLflow are imported when they are first needed: other commands start quickly.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from microseg.config.environment import sqlite_file
from microseg.config.settings import Settings
from microseg.datasets.dataset import LabDataset, open_lab_dataset
from microseg.datasets.onboarding import OnboardingStore
from microseg.datasets.versions.history import DatasetVersion
from microseg.datasets.versions.store import DatasetStore
from microseg.errors import RemoteUnavailableError, VersioningError, VersionNotFoundError

if TYPE_CHECKING:
    from microseg.api.segmenter import Segmenter
    from microseg.inference.engine import Engine, EngineOptions
    from microseg.models.network import PyramidSegmenter
    from microseg.registry.registry import Registry
    from microseg.registry.sqlite_reader import RegistryReader
    from microseg.registry.version import ModelVersion

_log = logging.getLogger(__name__)

__all__ = ["Workspace", "active_version", "open_workspace"]

_NETWORKS = 3  # kept in memory: a candidate, the production model and one more


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
        return self.keep_network(key, network)

    def keep_network(self, key: str, network: PyramidSegmenter) -> PyramidSegmenter:
        """Keep a network in memory, under the ID of its run, and return it; the one used longest ago is dropped."""
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


def active_version(registry: RegistryReader, lab: str | None = None) -> ModelVersion | None:
    """The version in production for a lab's images, or for all; None when there is none."""
    try:
        return registry.production.active(lab)
    except VersionNotFoundError:
        return None
