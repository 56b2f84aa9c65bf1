"""Which webhooks the receiver accepts, and what it forwards; `test_service.py` uses those of a real MLflow server."""

import json
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from click.testing import Result

from flows.service import webhook_receiver as module
from flows.service.webhook_receiver import command, webhook_receiver
from flows.validate_promotion import apply_pending_changes
from microseg.config.environment import Home
from microseg.config.settings import load_settings
from microseg.errors import SettingsError
from microseg.registry.webhooks import sign_webhook
from tests.flows.live import free_ports

Emitted = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def emitted(monkeypatch: pytest.MonkeyPatch) -> Emitted:
    """The emitted events: Prefect's settings do not reach the receiver's threads in tests."""
    events: Emitted = []

    def emit(event: str, resource: str, payload: dict[str, Any], *, identity: str | None = None) -> None:
        events.append((event, {"resource": resource, "id": identity, **payload}))

    monkeypatch.setattr(module, "emit", emit)
    return events


@pytest.fixture
def url(copied: Any, emitted: Emitted, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("MICROSEG_WEBHOOK_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    with webhook_receiver(load_settings()) as url:
        yield url


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A receiver with an empty home."""
    Home(tmp_path).create()
    monkeypatch.setenv("MICROSEG_HOME", str(tmp_path))
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


def test_changed_alias_emits_an_event(copied: Any, url: str, emitted: Emitted) -> None:
    copied.registry.versions.set_alias("production", 1)
    assert post(url, load_settings().environment.webhook_secret) == 202
    expected = {"resource": "microseg.alias.production", "id": "an-id", "alias": "production", "version": 1}
    assert emitted == [("microseg.promotion.requested", expected)]


@pytest.mark.parametrize("alias", ["Production", "production-lab_q", "PRODUCTION-lab_b"])
def test_alias_that_resembles_production_is_reported_at_once(
    copied: Any, url: str, emitted: Emitted, alias: str
) -> None:
    copied.registry.versions.set_alias(alias, 1)
    secret = load_settings().environment.webhook_secret
    assert post(url, secret, alias=alias) == 202
    assert [(event, payload["alias"]) for event, payload in emitted] == [("microseg.promotion.requested", alias)]
    [entry] = apply_pending_changes(load_settings(), alias)  # what the event starts
    assert (entry.alias, entry.action, entry.version) == (alias, "ignored", 1)
    assert copied.registry.production.active().version == 2
    assert post(url, secret, alias=alias) == 200  # once


def test_promotion_by_microseg_emits_no_event(copied: Any, url: str, emitted: Emitted) -> None:
    copied.registry.production.promote(1)
    assert post(url, load_settings().environment.webhook_secret) == 200
    assert emitted == []


@pytest.mark.parametrize("data", [{"alias": "candidate"}, {"name": "another"}, {"alias": "productive"}])
def test_other_aliases_and_models_emit_no_event(copied: Any, url: str, emitted: Emitted, data: dict[str, str]) -> None:
    copied.registry.versions.set_alias("production", 1)
    assert post(url, load_settings().environment.webhook_secret, **data) == 200
    assert emitted == []


def test_rejects_invalid_signatures_and_paths(copied: Any, url: str, emitted: Emitted) -> None:
    copied.registry.versions.set_alias("production", 1)
    assert post(url, "another secret") == 401
    assert code(urllib.request.Request(url, data=b"{}")) == 401
    assert code(urllib.request.Request(url + "/other", data=b"{}")) == 404
    assert code(urllib.request.Request(url, data=b"")) == 400
    assert code(urllib.request.Request(url, data=b"x" * 1_000_001)) == 413
    assert code(urllib.request.Request(url.replace("/mlflow", "/health"))) == 200
    assert emitted == []


def test_unreachable_prefect_server_gives_503(copied: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(module, "emit", away)
    copied.registry.versions.set_alias("production", 1)
    assert post(url, load_settings().environment.webhook_secret) == 503


def test_rejects_a_port_in_use(copied: Any, url: str) -> None:
    expected = f"used by process {os.getpid()} of .*choose another port with MICROSEG_WEBHOOK_URL"
    with pytest.raises(SettingsError, match=expected), webhook_receiver(load_settings()):
        pass


def raw(url: str, request: bytes) -> bytes:
    """The first bytes of the answer to a request; empty if the connection is closed without one."""
    with socket.create_connection(("127.0.0.1", int(urlsplit(url).port or 0)), timeout=30) as connection:
        connection.sendall(request)
        try:
            return connection.recv(100)
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /mlflow HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n{}",
        b"POST /mlflow HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n{}",
        b"POST /mlflow HTTP/1.1\r\nHost: x\r\nContent-Length: 1e3\r\n\r\n{}",
        b"POST /mlflow HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /mlflow HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",  # no host
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
        b"nonsense\r\n\r\n",
    ],
)
def test_malformed_requests_get_400(plain: str, request_: bytes) -> None:
    assert raw(plain, request_).startswith(b"HTTP/1.1 400 ")


def test_a_body_that_is_stated_to_be_too_large_is_not_waited_for(plain: str) -> None:
    request = b"POST /mlflow HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n{}"
    assert raw(plain, request).startswith(b"HTTP/1.1 413 ")  # 408 after a wait


def test_slow_clients_are_bounded_in_number_and_time(plain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_READ_SECONDS", 2.0)
    port = int(urlsplit(plain).port or 0)
    started = time.monotonic()
    slow = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(40)]
    slow[0].sendall(b"POST /mlflow HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    slow[1].sendall(b"POST /mlf")
    answers = []
    for connection in slow:
        try:
            answers.append(connection.recv(100))
        except ConnectionResetError:
            answers.append(b"")
        connection.close()
    assert answers[0].startswith(b"HTTP/1.1 408 ")
    assert set(answers[1:]) == {b""}
    assert time.monotonic() - started < 20
    assert code(urllib.request.Request(plain.replace("/mlflow", "/health"))) == 200


def test_a_registry_that_does_not_respond_gives_503(plain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CONNECTION_SECONDS", 11.0)  # 1 s to process it
    monkeypatch.setattr(module, "_process", lambda *_: time.sleep(3))
    assert code(urllib.request.Request(plain, data=b"{}")) == 503


@pytest.mark.parametrize("address", ["http://127.0.0.1", "http://127.0.0.1:port"])
def test_rejects_a_url_without_port(copied: Any, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("MICROSEG_WEBHOOK_URL", address)
    with pytest.raises(SettingsError, match="MICROSEG_WEBHOOK_URL"), webhook_receiver(load_settings()):
        pass


def test_command_needs_an_mlflow_server(
    copied: Any, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICROSEG_WEBHOOK_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    result = run(command)
    assert result.exit_code == 1
    assert "got a database" in " ".join(result.stderr.split())
