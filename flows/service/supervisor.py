"""Keeps the parts of a service running: a part that ends is started again, later each time."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flows.service.processes import Child, Children
from microseg.errors import MicrosegError

__all__ = ["Part", "RestartPolicy", "supervise"]

_log = logging.getLogger(__name__)

_POLL = 0.5  # seconds


@dataclass(frozen=True)
class RestartPolicy:
    """When a part is started again.

    Attributes:
        first_delay: Seconds before the first restart; doubled for each further failure in a row.
        longest_delay: Longest time between two starts, in seconds.
        healthy_after: A part that has run for so many seconds does not count as failing.
        max_failures: Failures in a row after which the service gives up; by default after about 20 minutes.
    """

    first_delay: float = 1.0
    longest_delay: float = 60.0
    healthy_after: float = 120.0
    max_failures: int = 24

    def delay(self, failures: int) -> float:
        """Seconds before the restart after a number of failures in a row."""
        return min(self.longest_delay, self.first_delay * 2.0 ** (failures - 1))


@dataclass
class Part:
    """A process of the service.

    Attributes:
        name: Its name, for messages.
        module: Module that runs it, with ``python -m``.
        arguments: Arguments of the module.
        reports_ready: Whether it reports that it is ready; otherwise it counts as ready when it has been started.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    reports_ready: bool = True
    child: Child | None = field(default=None, init=False)
    failures: int = field(default=0, init=False)
    started: float = field(default=0.0, init=False)
    next_start: float = field(default=0.0, init=False)

    @property
    def ready(self) -> bool:
        """Whether it does its work."""
        return self.child is not None and (self.child.ready or not self.reports_ready)


def supervise(
    parts: Sequence[Part],
    children: Children,
    stop: threading.Event,
    *,
    on_ready: Callable[[], None],
    policy: RestartPolicy | None = None,
) -> None:
    """Start all parts, and start each of them again that ends, until stopped.

    Args:
        parts: The parts.
        children: Starts their processes.
        stop: Set to return; the processes are left to the caller.
        on_ready: Called once, when all parts are ready.
        policy: When a part is started again.

    Raises:
        MicrosegError: A part has failed too often in a row.
    """
    policy = policy or RestartPolicy()
    announced = False
    while not stop.is_set():
        for part in parts:
            _keep_running(part, children, policy)
        if not announced and all(part.ready for part in parts):
            on_ready()
            announced = True
        stop.wait(_POLL)


def _keep_running(part: Part, children: Children, policy: RestartPolicy) -> None:
    now = time.monotonic()
    if part.child is None:
        if now >= part.next_start:
            part.child = children.start(part.name, [part.module, *part.arguments])
            part.started = now
        return
    code = part.child.process.poll()
    if code is None:
        return
    children.remove(part.child)  # with the runs that it has left
    part.child = None
    part.failures = 1 if now - part.started >= policy.healthy_after else part.failures + 1
    if part.failures >= policy.max_failures:
        raise MicrosegError(
            f"{part.name} ended with exit code {code} for the {part.failures}th time in a row; its messages are above. "
            "The service stops; systemd or Kubernetes starts it again if configured (deploy/README.md)."
        )
    delay = policy.delay(part.failures)
    part.next_start = now + delay
    _log.warning("%s ended with exit code %s after %.0f s: it is started again in %.0f s", part.name, code,
                 now - part.started, delay)  # fmt: skip
