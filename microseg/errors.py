"""The exceptions that microseg raises, as one tree.

Every message states what was expected, what was found, and what to do. Passwords in it are masked, and control
characters of names from outside are escaped. Those that pass by themselves, such as a server that is away, are
`TransientError` too: unattended work is tried again later.
"""

import errno

from microseg.escaping import mask_secrets, printable

__all__ = [
    "DataError",
    "HomeError",
    "HomeNotFoundError",
    "ImageReadError",
    "LabError",
    "LockedError",
    "MicrosegError",
    "ModelError",
    "NoSpaceError",
    "ParseError",
    "PluginError",
    "RegistryError",
    "RegistryUnavailableError",
    "RemoteUnavailableError",
    "ResourceLimitError",
    "SettingsError",
    "SlideUnavailableError",
    "SupersededError",
    "TrainingError",
    "TransientError",
    "VersionNotFoundError",
    "VersioningError",
    "WeightsError",
    "is_transient",
]


class MicrosegError(Exception):
    """Root of everything that microseg raises on purpose."""

    def __str__(self) -> str:
        return mask_secrets(printable(super().__str__(), keep="\n\t"))


class TransientError(MicrosegError):
    """A fault that passes by itself, or once a person has mended a server, a share or a disk: try again later."""


class NoSpaceError(TransientError, OSError):
    """The disk is full."""


class LockedError(TransientError):
    """Another process works on the same files now."""


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


class ParseError(DataError):
    """A text is not YAML, JSON or XML, or has more levels or characters than any sound one."""


class ResourceLimitError(ImageReadError):
    """A file takes more time or memory to read than any sound one."""


class SlideUnavailableError(ImageReadError, TransientError):
    """The server of a slide at an address cannot be reached, or does not answer now."""


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


class RemoteUnavailableError(VersioningError, TransientError):
    """The remote of the datasets cannot be reached, read or written now."""


class SupersededError(VersioningError, TransientError):
    """Another machine has committed a version of the dataset meanwhile: ingest again, on top of it."""


class RegistryError(MicrosegError, RuntimeError):
    """The model registry refuses, or cannot be reached."""


class VersionNotFoundError(RegistryError, LookupError):
    """No such model version, alias or stage in the registry."""


class RegistryUnavailableError(RegistryError, TransientError):
    """The model registry cannot be reached, or is busy."""


def is_transient(error: BaseException) -> bool:
    """Whether work that ended with an error can succeed later without any change to its input.

    That is so for a `TransientError`; for an error of the operating system or the network, such as a share that is
    away or a full disk; and for an error of microseg that one of these caused.

    Args:
        error: The error, with its causes.
    """
    if isinstance(error, OSError):  # also one without a number: the network errors of other libraries
        return error.errno not in _LASTING
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TransientError):
            return True
        if isinstance(cause, OSError) and cause.errno is not None:  # without one it may be a fault of an image file
            return cause.errno not in _LASTING
        cause = cause.__cause__
    return False


_LASTING = (
    errno.ENOENT,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
    errno.EILSEQ,
)
"""Errors of the operating system that state what the files are, and so remain."""
