"""Ports of this machine: whether this process can listen on one, and who else does."""

import socket
from contextlib import suppress
from datetime import UTC, datetime

import psutil

from microseg.errors import SettingsError

__all__ = ["check_port_free", "port_user"]


def port_user(port: int) -> str:
    """Who listens on a port of this machine, in words."""
    try:
        found = [
            it for it in psutil.net_connections("tcp") if it.status == psutil.CONN_LISTEN and it.laddr.port == port
        ]
        process = next(psutil.Process(it.pid) for it in found if it.pid is not None)
        command = " ".join(process.cmdline())
        started = datetime.fromtimestamp(process.create_time(), UTC)
    except (psutil.Error, StopIteration):
        return "another user's process"
    command = command if len(command) <= 100 else f"{command[:100]}…"
    return f"process {process.pid} of {process.username()}, running since {started:%Y-%m-%d %H:%M} UTC: {command}"


def check_port_free(host: str, port: int, setting: str) -> None:
    """Check that this process can listen on a port.

    Args:
        host: Interface.
        port: The port.
        setting: The option or variable that states it.

    Raises:
        SettingsError: Another process uses it; the message says which.
    """
    with socket.socket() as probe, socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reached = "127.0.0.1" if host == "0.0.0.0" else host  # nosec B104 (compared, not bound)
        taken = probe.connect_ex((reached, port)) == 0
        with suppress(OverflowError):
            try:
                trial.bind((host, port))
            except PermissionError as error:
                raise SettingsError(
                    f"Expected a port in {setting} that this user may use, got {port}: {error}. Use one above 1023."
                ) from error
            except OSError:
                taken = True
    if taken:
        raise SettingsError(
            f"Expected port {port} to be free, but it is used by {port_user(port)}. Stop it if it is not needed, or "
            f"choose another port with {setting}."
        )
