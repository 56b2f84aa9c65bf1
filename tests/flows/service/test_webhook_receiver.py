"""Whom the bridge believes, and what it passes on. `test_service.py` has a real MLflow server send to it."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from click.testing import Result

from flows.service import webhook_receiver as module
from flows.service.webhook_receiver import command, webhook_receiver
from microseg.config.settings import load_settings
from microseg.errors import SettingsError
from microseg.registry.webhooks import sign_webhook
from tests.flows.live import free_ports

Told = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What Prefect is told: its settings do not reach the bridge's threads in tests."""
    events: Told = []

    def emit(event: str, resource: str, payload: dict[str, Any], *, identity: str | None = None) -> None:
        events.append((event, {"resource": resource, "id": identity, **payload}))

    monkeypatch.setattr(module, "emit", emit)
    return events


@pytest.fixture
def url(copied: Any, told: Told, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("MICROSEG_WEBHOOK_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    with webhook_receiver(load_settings()) as url:
        yield url


def post(url: str, secret: str, **data: str) -> int:
    facts = {"name": "microseg-segmenter", "alias": "production", "version": "1"} | data
    body = json.dumps({"entity": "model_version_alias", "action": "created", "data": facts}).encode()
    stamp = str(int(time.time()))
    headers = {"X-MLflow-Delivery-Id": "an-id", "X-MLflow-Timestamp": stamp}
    headers["X-MLflow-Signature"] = sign_webhook(secret, "an-id", stamp, body)
    return code(urllib.request.Request(url, data=body, headers=headers))


def code(request: urllib.request.Request) -> int:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_moved_alias_is_passed_on(copied: Any, url: str, told: Told) -> None:
    copied.registry.set_alias("production", 1)
    assert post(url, load_settings().environment.webhook_secret) == 202
    expected = {"resource": "microseg.alias.production", "id": "an-id", "alias": "production", "version": 1}
    assert told == [("microseg.promotion.requested", expected)]


def test_what_microseg_did_itself_is_not(copied: Any, url: str, told: Told) -> None:
    copied.registry.promote(1)
    assert post(url, load_settings().environment.webhook_secret) == 200
    assert told == []


@pytest.mark.parametrize("data", [{"alias": "candidate"}, {"name": "another"}, {"alias": "productive"}])
def test_what_does_not_concern_production(copied: Any, url: str, told: Told, data: dict[str, str]) -> None:
    copied.registry.set_alias("production", 1)
    assert post(url, load_settings().environment.webhook_secret, **data) == 200
    assert told == []


def test_who_does_not_know_the_secret(copied: Any, url: str, told: Told) -> None:
    copied.registry.set_alias("production", 1)
    assert post(url, "a guess") == 401
    assert code(urllib.request.Request(url, data=b"{}")) == 401
    assert code(urllib.request.Request(url + "/other", data=b"{}")) == 404
    assert code(urllib.request.Request(url, data=b"")) == 413
    assert code(urllib.request.Request(url.replace("/mlflow", "/health"))) == 200
    assert told == []


def test_mlflow_tries_again_while_prefect_is_away(copied: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(module, "emit", away)
    copied.registry.set_alias("production", 1)
    assert post(url, load_settings().environment.webhook_secret) == 503


def test_a_port_that_is_taken(copied: Any, url: str) -> None:
    with (
        pytest.raises(SettingsError, match="Expected a free port in MICROSEG_WEBHOOK_URL"),
        webhook_receiver(load_settings()),
    ):
        pass


@pytest.mark.parametrize("address", ["http://127.0.0.1", "http://127.0.0.1:port"])
def test_an_address_without_a_port(copied: Any, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("MICROSEG_WEBHOOK_URL", address)
    with pytest.raises(SettingsError, match="MICROSEG_WEBHOOK_URL"), webhook_receiver(load_settings()):
        pass


def test_a_database_sends_no_word(copied: Any, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROSEG_WEBHOOK_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    result = run(command)
    assert result.exit_code == 1
    assert "found a database" in " ".join(result.stderr.split())
