"""Notifications reach a receiver of the group, once each, also after it was away, and show no secret."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from flows.health.runs import check_notifications
from flows.service import events, failed_runs, notifications
from flows.service.failed_runs import notify_failed_runs
from flows.service.notifications import deliver, notify_people, undelivered
from microseg.config.environment import Home
from microseg.config.settings import load_settings
from microseg.errors import LabError, SettingsError
from tests.flows.live import free_ports


class Receiver:
    """A webhook of a group, on this machine."""

    def __init__(self, port: int) -> None:
        self.received: list[dict[str, str]] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = HTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    monkeypatch.setenv("MICROSEG_HOME", str(home.root))
    return home


@pytest.fixture
def port(home: Home, monkeypatch: pytest.MonkeyPatch) -> int:
    [port] = free_ports(1)
    monkeypatch.setenv("MICROSEG_NOTIFY", f"json://ann:hunter22@127.0.0.1:{port}/hook")
    return port


@pytest.fixture
def receiver(port: int) -> Iterator[Receiver]:
    receiver = Receiver(port)
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


def test_off_by_default(home: Home) -> None:
    notify_people(load_settings(), "title", "message", identity="one")
    assert not (home.records / "notifications").exists()
    assert [it.message.split(":")[0] for it in check_notifications(load_settings())] == ["off"]


def test_one_line_in_params_switches_them_on(home: Home, port: int, receiver: Receiver, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text(f"notify: json://127.0.0.1:{port}/\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MICROSEG_NOTIFY")
        patch.setenv("MICROSEG_PARAMS", str(params))
        notify_people(load_settings(), "title", "message", identity="one")
    assert [(it["title"], it["message"]) for it in receiver.received] == [("title", "message")]


def test_each_is_sent_once(home: Home, receiver: Receiver) -> None:
    for identity in ("one", "one", "two"):
        notify_people(load_settings(), identity, "message", identity=identity)
    assert [it["title"] for it in receiver.received] == ["one", "two"]
    assert undelivered(home) == 0


def test_none_is_lost_while_the_receiver_is_away(home: Home, port: int, caplog: pytest.LogCaptureFixture) -> None:
    settings = load_settings()
    notify_people(settings, "title", "message", identity="one")
    assert undelivered(home) == 1
    assert "could not be delivered to json://" in caplog.text
    assert "hunter22" not in caplog.text
    assert [it.level for it in check_notifications(settings)] == ["warning"]
    receiver = Receiver(port)
    deliver(settings)
    deliver(settings)
    assert [it["title"] for it in receiver.received] == ["title"]
    assert undelivered(home) == 0
    receiver.server.shutdown()


@pytest.mark.parametrize("text", ["", "[" * 20_000, "[]", '{"delivered": []}'])
def test_a_damaged_notification_does_not_hold_up_others(home: Home, receiver: Receiver, text: str) -> None:
    folder = home.records / "notifications"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text(text)
    notify_people(load_settings(), "title", "message", identity="one")
    assert [it["title"] for it in receiver.received] == ["title"]
    assert (undelivered(home), (folder / "a.json.damaged").read_text()) == (0, text)


def test_a_receiver_that_has_it_does_not_get_it_again(
    home: Home, receiver: Receiver, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    [away] = free_ports(1)
    monkeypatch.setenv("MICROSEG_NOTIFY", f"[json://127.0.0.1:{port}/, json://127.0.0.1:{away}/]")
    notify_people(load_settings(), "title", "message", identity="one")
    deliver(load_settings())
    assert [it["title"] for it in receiver.received] == ["title"]
    assert undelivered(home) == 1


@pytest.mark.parametrize("address", ["nonsense", "ftp://ann:hunter22@example.org"])
def test_an_invalid_address_is_reported_without_its_secret(
    home: Home, monkeypatch: pytest.MonkeyPatch, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MICROSEG_NOTIFY", address)
    with pytest.raises(SettingsError, match="expected addresses of Apprise such as mailto://"):
        notifications.open_addresses(load_settings())
    [finding] = check_notifications(load_settings())
    assert finding.level == "error"
    notify_people(load_settings(), "title", "message", identity="one")  # raises nothing
    assert "hunter22" not in caplog.text + finding.message


def test_settings_do_not_show_the_address(home: Home, port: int) -> None:
    settings = load_settings()
    assert "hunter22" not in f"{settings!r} {settings.params.model_dump()} {settings.model_dump_json()}"


def test_a_failed_run_is_reported_with_its_reason(
    home: Home, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        failed_runs, "our_deployments", lambda _: [SimpleNamespace(id=uuid4(), name="validate-promotion")]
    )
    state = SimpleNamespace(id=uuid4(), message="Version 4 was reverted, version 3 stays in production.")
    facts = {"id": uuid4(), "name": "validate production", "state": state, "state_name": "Failed"}
    run = SimpleNamespace(**facts, deployment_id=uuid4(), auto_scheduled=False)
    client: Any = SimpleNamespace(read_flow_runs=lambda **_: [run])
    for _ in range(2):
        notify_failed_runs(client, load_settings())
    [received] = receiver.received
    assert received["title"] == "microseg: validate production failed"
    assert received["message"].startswith("Version 4 was reverted, version 3 stays in production.")


def test_a_scheduled_run_that_fails_each_time_is_reported_once_a_day(
    home: Home, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    reconcile = SimpleNamespace(id=uuid4(), name="reconcile")
    monkeypatch.setattr(failed_runs, "our_deployments", lambda _: [reconcile])

    def run(day: int, hour: int) -> SimpleNamespace:
        state = SimpleNamespace(id=uuid4(), message="The registry cannot be reached.")
        time = datetime(2026, 11, day, hour, tzinfo=UTC)
        run = {"id": uuid4(), "name": f"reconcile {time}", "state": state, "state_name": "Failed", "end_time": time}
        return SimpleNamespace(**run, deployment_id=reconcile.id, auto_scheduled=True)

    client: Any = SimpleNamespace(read_flow_runs=lambda **_: [run(26, 1), run(26, 2), run(27, 1)])
    notify_failed_runs(client, load_settings())
    assert len(receiver.received) == 2


def test_events_for_people_are_sent_to_them(home: Home, receiver: Receiver) -> None:
    payload = {"alias": "production", "version": 4, "message": "Version 4 was reverted: it does not load."}
    for _ in range(2):
        events.notify(events.PROMOTION_REVERTED, "microseg.alias.production", payload, identity=str(UUID(int=1)))
    [received] = receiver.received
    assert received["title"] == "microseg: a promotion was reverted"
    assert received["message"] == "Version 4 was reverted: it does not load."


def test_events_may_name_folders_below_the_allowed_roots_only(home: Home, tmp_path: Path) -> None:
    share = tmp_path / "share"
    outside = tmp_path / "outside" / "lab_c"
    for folder in (share / "lab_b", outside, home.incoming):
        folder.mkdir(parents=True)
    (home.incoming / "lab_d").symlink_to(outside)
    settings = load_settings((f"data.allowed_roots=[{share}]",))
    events.check_event_folder(home.incoming / "lab_a", settings)
    events.check_event_folder(share / "lab_b", settings)
    for folder in (outside, share / ".." / "outside" / "lab_c", home.incoming / "lab_d", Path("/etc")):
        with pytest.raises(LabError, match=r"expected a folder below .*data\.allowed_roots"):
            events.check_event_folder(folder, settings)
