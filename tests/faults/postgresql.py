"""A PostgreSQL server for tests, from the package of the system."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.flows.live import free_ports

__all__ = ["PostgreSQL"]


def _programs() -> Path | None:
    """Folder of ``initdb`` and ``pg_ctl``."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    path = str(found[-1]) if found else shutil.which("initdb")
    return Path(path).parent if path else None


class PostgreSQL:
    """A server with two databases, ``prefect`` and ``mlflow``, in a temporary folder."""

    def __init__(self) -> None:
        programs = _programs()
        assert programs, "expected PostgreSQL, found none: apt-get install postgresql"
        self._programs, (self.port,) = programs, free_ports(1)
        self._folder = Path(tempfile.mkdtemp(prefix="microseg-postgresql-"))
        if os.getuid() == 0:  # it refuses to run as root
            shutil.chown(self._folder, "postgres", "postgres")
        data = str(self._folder / "data")
        self._call("initdb", "-D", data, "-U", "microseg", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._folder}"
        self._call("pg_ctl", "-D", data, "-w", "-l", str(self._folder / "log.txt"), "-o", options, "start")
        for name in ("prefect", "mlflow"):
            self._call("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "microseg", name)

    def url(self, database: str, driver: str = "postgresql") -> str:
        """SQLAlchemy's address of a database."""
        return f"{driver}://microseg@127.0.0.1:{self.port}/{database}"

    def close(self) -> None:
        """Stop the server, and remove its files."""
        self._call("pg_ctl", "-D", str(self._folder / "data"), "-m", "immediate", "-w", "stop")
        shutil.rmtree(self._folder, ignore_errors=True)

    def _call(self, program: str, *arguments: str) -> None:
        user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        subprocess.run(
            [*user, str(self._programs / program), *arguments],
            cwd=self._folder, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        )  # fmt: skip
