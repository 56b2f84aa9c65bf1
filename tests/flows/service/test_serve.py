"""The deployments, without running them; `test_local_servers.py` runs them."""

import importlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import Result
from prefect.flows import Flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.service import serve
from flows.service.deployments import deployments
from flows.service.processes import Children, exclusive
from flows.service.serve import command
from microseg.config.settings import load_settings
from microseg.errors import SettingsError


def test_every_deployment_can_be_imported_from_any_folder(fresh: Path) -> None:
    made = deployments(load_settings())
    assert [it.name for it in made] == [it.flow_name for it in made]
    for it in made:
        module, _, name = it.entrypoint.rpartition(".")
        flow = getattr(importlib.import_module(module), name)
        assert isinstance(flow, Flow)
        assert flow.name == it.flow_name
        assert it.description
        assert it.tags == ["microseg"]
    assert {it.flow_name for it in made} == {
        "ingest", "train", "adapt", "evaluate", "promote", "rollback", "segment",
        "onboard", "validate-promotion", "reconcile", "segment-scheduled",
    }  # fmt: skip


def test_deployments_run_after_an_earlier_version_has_paused_them(fresh: Path) -> None:
    assert {it.paused for it in deployments(load_settings())} == {False}


def test_schedules_and_triggers(fresh: Path) -> None:
    changes = ("schedule.segment_cron=30 4 * * 1", "schedule.timezone=Europe/Berlin", "schedule.reconcile_minutes=7")
    made = {it.flow_name: it for it in deployments(load_settings(changes))}
    assert {name for name, it in made.items() if it.schedules} == {"segment-scheduled", "reconcile"}
    [batch], [poll] = made["segment-scheduled"].schedules, made["reconcile"].schedules
    assert (batch.schedule.cron, batch.schedule.timezone) == ("30 4 * * 1", "Europe/Berlin")
    assert poll.schedule.interval == timedelta(minutes=7)
    triggers = {name: trigger for name, it in made.items() for trigger in it.triggers}
    assert {name: set(trigger.expect) for name, trigger in triggers.items()} == {
        "onboard": {"microseg.lab.arrived"},
        "validate-promotion": {"microseg.promotion.requested"},
    }
    assert triggers["onboard"].parameters == {"folder": "{{ event.payload.folder }}"}


@pytest.mark.parametrize(("given", "expected"), [("to-segment", "{home}/to-segment"), ("/mnt/slides", "/mnt/slides")])
def test_scheduled_folder_is_absolute(fresh: Path, given: str, expected: str) -> None:
    batch = deployments(load_settings((f"schedule.folder={given}",)))[-1]
    assert batch.parameters == {"folder": expected.format(home=fresh)}


@pytest.mark.parametrize("change", ["schedule.segment_cron=at night", "schedule.timezone=Atlantis"])
def test_rejects_an_invalid_schedule(fresh: Path, change: str) -> None:
    with pytest.raises(SettingsError, match="expected a cron expression"):
        deployments(load_settings((change,)))


def test_requires_a_server(fresh: Path, run: Callable[..., Result]) -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        result = run(command)
    assert result.exit_code == 1
    assert "PREFECT_API_URL: expected the address of a Prefect server, found none" in result.stderr


def test_rejects_a_server_that_does_not_respond(
    fresh: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_WAIT_SECONDS", 0)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        result = run(command)
    assert result.exit_code == 1
    assert "Expected a Prefect server at http://127.0.0.1:9/api" in result.stderr


def test_an_address_is_shown_without_its_password(
    fresh: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_WAIT_SECONDS", 0)
    with temporary_settings({PREFECT_API_URL: "http://ann:hunter22@127.0.0.1:9/api"}):
        result = run(command)
    assert "Expected a Prefect server at http://***@127.0.0.1:9/api" in result.stderr
    assert "hunter22" not in result.output


def test_a_second_service_of_a_home_is_refused(fresh: Path, run: Callable[..., Result]) -> None:
    home = load_settings().home
    with exclusive(home, "serve") as record:
        Children(record).close()
        result = run(command)
    assert result.exit_code == 1
    assert "Expected no running `microseg serve` of the home" in result.stderr
