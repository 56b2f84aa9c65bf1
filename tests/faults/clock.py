"""A clock for processes that can be set while they run.

libfaketime 0.9.10 is not used: where it leaves the monotonic clock alone, `time.sleep` fails.
"""

import subprocess
from pathlib import Path

__all__ = ["Clock"]


class Clock:
    """A clock that is the machine's until it is set; Linux only, with a C compiler.

    Args:
        folder: Folder for its files.
    """

    def __init__(self, folder: Path) -> None:
        self._offset, library = folder / "clock", folder / "clock.so"
        self.set(0)
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        self.variables = {"LD_PRELOAD": str(library), "MICROSEG_TEST_CLOCK": str(self._offset)}
        """Environment of the processes that use it."""

    def set(self, seconds: int) -> None:
        """Set it this much ahead of the machine's clock."""
        with self._offset.open("r+b" if self._offset.exists() else "w+b", buffering=0) as file:
            file.write(seconds.to_bytes(8, "little", signed=True))
