"""The exceptions that microseg raises, as one tree.

Every message states what was expected, what was found, and what to do.
"""

__all__ = [
    "DataError",
    "HomeError",
    "HomeNotFoundError",
    "ImageReadError",
    "LabError",
    "MicrosegError",
    "ModelError",
    "PluginError",
    "RegistryError",
    "SettingsError",
    "TrainingError",
    "VersionNotFoundError",
    "VersioningError",
    "WeightsError",
]


class MicrosegError(Exception):
    """Root of everything that microseg raises on purpose."""


class SettingsError(MicrosegError, ValueError):
    """An environment variable or a value in ``params.yaml`` cannot be used."""


class HomeError(SettingsError):
    """microseg's home is missing, cannot be written, or is of another format."""


class HomeNotFoundError(HomeError):
    """There is no microseg home where one was looked for."""


class DataError(MicrosegError, ValueError):
    """Images, masks, manifests or labs that cannot be used."""


class ImageReadError(DataError):
    """One image or mask file cannot be read."""


class LabError(DataError):
    """A lab's folder, its name or its ``lab.yaml`` cannot be used."""


class ModelError(MicrosegError, ValueError):
    """A network's configuration, input or files cannot be used."""


class WeightsError(ModelError):
    """Weights are missing, unreachable, or belong to another architecture."""


class PluginError(MicrosegError, LookupError):
    """An extension is not installed or cannot be imported."""


class TrainingError(MicrosegError, RuntimeError):
    """Training cannot start, go on, or be resumed."""


class VersioningError(MicrosegError, RuntimeError):
    """A dataset cannot be versioned, pushed or checked out."""


class RegistryError(MicrosegError, RuntimeError):
    """The model registry refuses, or cannot be reached."""


class VersionNotFoundError(RegistryError, LookupError):
    """No such model version, alias or stage in the registry."""
