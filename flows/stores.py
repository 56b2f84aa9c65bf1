"""Where things are kept that outlive a run: the registry, the labs' datasets, what became of deliveries.

Without PyTorch, and without MLflow until the registry is opened: what only looks starts in a moment.
"""

from __future__ import annotations

import microseg.registry
from flows.settings import Settings
from microseg.data.landing import Landings
from microseg.errors import VersionNotFoundError
from microseg.versioning import DatasetStore

__all__ = ["dataset_store", "in_use", "landings", "open_registry"]


def open_registry(settings: Settings) -> microseg.registry.Registry:
    """The registry that the environment names."""
    return microseg.registry.Registry(settings.environment.tracking_uri)


def in_use(registry: microseg.registry.Registry, lab: str | None = None) -> microseg.registry.ModelVersion | None:
    """The version in production for a lab's images, or for all; None when there is none."""
    try:
        return registry.in_use(lab)
    except VersionNotFoundError:
        return None


def dataset_store(settings: Settings) -> DatasetStore:
    """The labs' datasets and their remote."""
    return DatasetStore(settings.home.data, settings.environment.dvc_remote)


def landings(settings: Settings) -> Landings:
    """What became of each lab's deliveries."""
    return Landings(settings.home.records / "landings")
