"""Ends the child processes of a service that was killed; started by `flows.service.processes`.

Its standard input is a pipe that only the service writes to: ``+<pid>`` for a process group that was started,
``-<pid>`` for one that has ended. The end of the input means that the service is gone. Only the standard library is
used, so that this process needs few megabytes.
"""

import os
import signal
import sys
import time
from contextlib import suppress

__all__ = ["end_groups", "main"]

STOP_SECONDS = 10.0
"""Time between SIGTERM and SIGKILL, the argument of this process."""


def main() -> None:
    """Read which process groups run, and end those that run when the input ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when the service ends
    groups: list[int] = []
    for line in sys.stdin:
        group = int(line[1:])
        groups = [other for other in groups if other != group] + ([group] if line[0] == "+" else [])
    end_groups(groups[::-1], float(sys.argv[1]))


def end_groups(groups: list[int], seconds: float) -> None:
    """End process groups: SIGTERM to their first processes, which end their own children; then SIGKILL to all.

    Args:
        groups: Process groups, each with the process ID of its first process.
        seconds: Time after which SIGKILL is sent.
    """
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(group, signal.SIGTERM)
    end = time.monotonic() + seconds
    while any(map(_exists, groups)) and time.monotonic() < end:
        time.sleep(0.1)
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


def _exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    main()
