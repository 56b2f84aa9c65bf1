"""Register the deployments, and run what is requested or scheduled: a part of `microseg serve`.

    python -m flows.service.runner

Long flows run one at a time, because each can use the whole machine; short ones do not wait for them. When it is told
to stop, it interrupts the runs in progress, and they start again with the service.
"""

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Self
from uuid import UUID

import httpx
import psutil
from prefect.client.orchestration import get_client
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_LOGGING_LEVEL, temporary_settings

from flows.cli.options import cli_command
from flows.service.failed_runs import notify_failed_runs
from flows.service.lost_runs import (
    HEARTBEAT_SECONDS,
    HOST_LABEL,
    LostRuns,
    host_name,
    live_flow_runs,
    repeat_interrupted,
)
from flows.service.notifications import deliver
from flows.service.processes import report_ready
from flows.service.run_names import has_generated_name, name_scheduled_runs, telling_name
from microseg.config.settings import Settings, load_settings

__all__ = ["main", "run"]

_LIMITS = {"microseg short": 2, "microseg long": 1}  # runs in progress
_STOP_SECONDS = 8.0  # time for a run to end by itself
_EXIT_SECONDS = 14.0  # time after which this process ends in any case
_SWEEP_SECONDS = 20.0

_log = logging.getLogger(__name__)


class _HostRunner(Runner):
    """A runner that marks its runs with this host, and survives that the server is away while runs are in progress.

    Args:
        host: This host, from `host_name`.
        stop: Called on SIGTERM.
        options: See `Runner`.
    """

    taking: ClassVar[set[UUID]] = set()
    """Runs that are not marked yet."""

    _entered: ClassVar[list[Any]] = []

    def __init__(self, host: str, stop: Callable[[int], None], **options: Any) -> None:
        super().__init__(pause_on_shutdown=False, heartbeat_seconds=HEARTBEAT_SECONDS, **options)
        self._host = host
        self._stop = stop
        self._was_away = False

    @classmethod
    def working(cls) -> set[UUID]:
        """Runs that the runners of this process are starting, or whose processes they wait for."""
        return {run for runner in cls._entered for run in runner._scheduled_run_poller._submitting_flow_run_ids}

    def handle_sigterm(self, *_: Any, **__: Any) -> None:
        """Stop this process; called by the signal."""
        self._stop(0)

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._entered.append(self)
        proposer, poller = self._state_proposer, self._scheduled_run_poller
        proposer.propose_pending = self._marked(proposer.propose_pending)  # type: ignore[method-assign, assignment]
        poller._get_and_submit_flow_runs = self._patient(poller._get_and_submit_flow_runs)  # type: ignore[method-assign, assignment]
        return self

    def _marked(self, propose: Callable[..., Awaitable[bool]]) -> Callable[..., Awaitable[bool]]:
        async def propose_pending(flow_run: Any) -> bool:
            self.taking.add(flow_run.id)
            try:
                if not await propose(flow_run):
                    return False
                await self._client.update_flow_run_labels(flow_run.id, {HOST_LABEL: self._host})
                if has_generated_name(flow_run):
                    deployment = self._deployment_registry.get_deployment_name(flow_run.deployment_id)
                    await self._client.set_flow_run_name(flow_run.id, telling_name(deployment or "run", flow_run))
                return True
            finally:
                self.taking.discard(flow_run.id)

        return propose_pending

    def _patient(self, poll: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        """Poll as before, but let errors of the connection end this process only while none of its runners works."""

        async def poll_patiently(*args: Any, **options: Any) -> None:
            try:
                await poll(*args, **options)
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                if not self.working():
                    raise
                if not self._was_away:
                    _log.warning("The Prefect server does not respond (%s); the runs in progress go on", error)
                self._was_away = True
            else:
                if self._was_away and not self.working():
                    _log.warning("The Prefect server was away: the runner starts again")  # with new connections
                    self._stop(1)

        return poll_patiently


class _Exit:
    """Ends this process: its runs are interrupted, and queued again.

    Args:
        host: This host, from `host_name`.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._ends = threading.Lock()

    def __call__(self, code: int) -> None:
        """Interrupt the runs, queue them again, end.

        The event loop stands still meanwhile, so that the runners do not report what this process does to their runs.
        """
        if not self._ends.acquire(blocking=False):
            return
        threading.Timer(_EXIT_SECONDS, os._exit, (code or 1,)).start()
        runs = [*_HostRunner.taking, *_end_own_runs()]
        try:
            with temporary_settings({PREFECT_API_REQUEST_TIMEOUT: 3}), get_client(sync_client=True) as client:
                if _HostRunner.taking:
                    time.sleep(1)  # another host may have taken them, and marks them now
                _log_all(repeat_interrupted(client, runs, self._host))
        except Exception as error:  # the next start does it
            _log.warning("The Prefect server does not respond (%s): interrupted runs are queued again later", error)
        os._exit(code)  # the runners would wait for the server


def _end_own_runs() -> list[Any]:
    """End the processes of the runs that this process has started; returns the runs."""
    own = {child.pid for child in psutil.Process().children(recursive=True)}
    runs = {run: process for run, process in live_flow_runs().items() if process.pid in own}
    for process in runs.values():
        with suppress(psutil.Error):
            process.terminate()
    psutil.wait_procs(list(runs.values()), _STOP_SECONDS)
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    return list(runs)


def _maintain(lost: LostRuns, settings: Settings) -> None:
    """From time to time, end lost runs, name new ones, and report failed ones, in a thread."""
    while True:
        time.sleep(_SWEEP_SECONDS)
        try:
            with get_client(sync_client=True) as client:
                _log_all(lost.sweep(client, working=_HostRunner.working()))
                name_scheduled_runs(client)
                notify_failed_runs(client, settings)
            deliver(settings)
        except Exception as error:  # the server is away, or a run has changed meanwhile
            _log.debug("The queue could not be checked: %r", error)
            lost.forget()


def _log_all(lines: Sequence[str]) -> None:
    for line in lines:
        _log.warning("%s", line)


async def _run_all(runners: list[_HostRunner]) -> None:
    async def ready() -> None:
        while not all(runner.last_polled for runner in runners):
            await asyncio.sleep(0.2)
        report_ready()

    await asyncio.gather(*(runner.start() for runner in runners), ready())


def run(settings: Settings, short: Sequence[RunnerDeployment], long: Sequence[RunnerDeployment]) -> None:
    """Register deployments and run them, until SIGTERM ends this process.

    Args:
        settings: Settings of this process.
        short: Deployments whose runs take seconds: two at a time.
        long: Deployments whose runs can use the whole machine: one at a time.
    """
    host = host_name(settings.home)
    end, lost = _Exit(host), LostRuns(host)
    with temporary_settings({PREFECT_LOGGING_LEVEL: "INFO"}):  # log lines of a run appear on its page
        with get_client(sync_client=True) as client:
            _log_all(lost.sweep(client, starting=True))
        runners = [_HostRunner(host, end, name=name, limit=limit) for name, limit in _LIMITS.items()]
        for runner, deployments in zip(runners, (short, long), strict=True):
            for deployment in deployments:
                runner.add_deployment(deployment)
        threading.Thread(target=_maintain, args=(lost, settings), name="maintenance", daemon=True).start()
        try:
            asyncio.run(_run_all(runners))
        except Exception:
            _log.exception("The runner failed")
        end(1)


@cli_command()
def main() -> None:
    """Register the deployments and run them, as a part of `microseg serve`."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # until runs can be in progress
    from flows.service.deployments import deployments, is_short  # takes seconds

    settings = load_settings()
    logging.getLogger("flows").setLevel(logging.INFO)
    made = deployments(settings)
    run(settings, [it for it in made if is_short(it)], [it for it in made if not is_short(it)])


if __name__ == "__main__":
    main()
