import os
import socket

import pytest

from flows.service.ports import check_port_free
from microseg.errors import SettingsError


def test_the_process_that_uses_a_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        expected = f"Expected port {port} to be free, but it is used by process {os.getpid()} of .*--prefect-port"
        with pytest.raises(SettingsError, match=expected):
            check_port_free("127.0.0.1", port, "--prefect-port")
    check_port_free("127.0.0.1", port, "--prefect-port")
