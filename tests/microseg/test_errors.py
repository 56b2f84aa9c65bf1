"""Which errors pass by themselves."""

import errno

import pytest

from microseg.errors import (
    ImageReadError,
    LabError,
    MicrosegError,
    RegistryError,
    RegistryUnavailableError,
    RemoteUnavailableError,
    VersioningError,
    is_transient,
)


def caused(error: MicrosegError, cause: BaseException) -> MicrosegError:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RegistryUnavailableError("no server"), True),
        (RemoteUnavailableError("no share"), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (PermissionError(errno.EACCES, "Permission denied"), True),
        (ConnectionError("reset"), True),
        (caused(LabError("lab.yaml"), OSError(errno.EIO, "Input/output error")), True),
        (caused(LabError("lab"), caused(RegistryError("x"), TimeoutError(errno.ETIMEDOUT, "timed out"))), True),
        (RegistryError("refused"), False),
        (VersioningError("no such version"), False),
        (LabError("no images"), False),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (OSError(errno.ENAMETOOLONG, "File name too long"), False),
        (caused(ImageReadError("a.png"), OSError("image file is truncated")), False),
        (ValueError("a bug"), False),
    ],
)
def test_faults_of_servers_shares_and_disks_pass(error: BaseException, expected: bool) -> None:
    assert is_transient(error) is expected
