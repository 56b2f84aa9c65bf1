"""Artifacts that cannot be written do not end the work."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from flows import telemetry
from flows.cli.console import exit_on_error
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


@pytest.mark.parametrize("output", ["| head -1", "> /dev/full"])
def test_output_that_goes_away_does_not_end_the_work(tmp_path: Path, output: str) -> None:
    code = (
        "import sys; from pathlib import Path; from flows.cli.console import console\n"
        "for _ in range(2000): console.print('x' * 100)\n"
        f"Path({str(tmp_path / 'done')!r}).touch()"
    )
    subprocess.run(["sh", "-c", f'"$0" -c "$1" {output}', sys.executable, code], check=False, capture_output=True)
    assert (tmp_path / "done").exists()


def test_commands_print_warnings_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with exit_on_error():
            logging.getLogger("microseg.registry.runs").warning("The work goes on, but %s", "[the run] lacks metrics")
    assert capsys.readouterr().err == "microseg: The work goes on, but [the run] lacks metrics\n" * 2
