"""Artifacts that cannot be written do not end the work."""

import pytest

from flows import telemetry
from flows.telemetry import attempt


def test_failed_attempt_warns_and_is_not_repeated_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, tried = [0.0], []
    monkeypatch.setattr(telemetry, "_paused", {})
    monkeypatch.setattr("flows.telemetry.time.monotonic", lambda: now[0])

    def create_table_artifact(value: int) -> int:
        tried.append(value)
        now[0] += 5  # seconds until a server is found to be away
        if value < 0:
            raise ConnectionError("All connection attempts failed")
        return value

    assert attempt(create_table_artifact, 1) == 1
    for _ in range(10):
        assert attempt(create_table_artifact, -1) is None
    assert tried == [1, -1]
    expected = "Failed to create table artifact; the work goes on. ConnectionError: All connection attempts failed"
    assert [record.message for record in caplog.records if record.name == "flows.telemetry"] == [expected]
    now[0] += 50
    assert attempt(create_table_artifact, 2) == 2
    assert tried == [1, -1, 2]
