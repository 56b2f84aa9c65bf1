"""The runner of the service while the Prefect server is away."""

import asyncio
from types import SimpleNamespace
from uuid import UUID, uuid4

import httpx
import pytest

from flows.service.runner import _HostRunner


def test_a_server_that_is_away_interrupts_no_run_of_the_other_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: set[UUID] = {uuid4()}  # of the runner for long runs
    busy = SimpleNamespace(_scheduled_run_poller=SimpleNamespace(_submitting_flow_run_ids=runs))
    monkeypatch.setattr(_HostRunner, "_entered", [busy])
    stops: list[int] = []
    answers = [httpx.ConnectError("away")] * 5

    async def poll() -> None:
        if answers:
            raise answers.pop()

    poll_patiently = _HostRunner("this/1", stops.append, name="short")._patient(poll)
    while answers:
        asyncio.run(poll_patiently())
    asyncio.run(poll_patiently())
    assert not stops
    runs.clear()
    asyncio.run(poll_patiently())
    assert stops == [1]  # it starts again with new connections when nothing is in progress
    answers.append(httpx.ConnectError("away"))
    with pytest.raises(httpx.ConnectError):
        asyncio.run(poll_patiently())
