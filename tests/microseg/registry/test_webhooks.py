"""Verifying, parsing and subscribing to webhooks."""

import base64
import json
import time

import pytest
from mlflow import MlflowClient
from mlflow.entities.webhook import WebhookEvent

from microseg.registry.registry import Registry
from microseg.registry.webhooks import AliasEvent, SignatureError, parse_webhook, sign_webhook

SECRET = "a secret"
NOW = 1_750_000_000


def content(action: str = "created", entity: str = "model_version_alias", **data: str) -> bytes:
    facts = {"name": "microseg-segmenter", "alias": "production", "version": "3"} | data
    return json.dumps({"entity": entity, "action": action, "timestamp": "…", "data": facts}).encode()


def headers(body: bytes, secret: str = SECRET, when: int = NOW) -> dict[str, str]:
    signature = sign_webhook(secret, "an-id", str(when), body)
    return {"x-mlflow-delivery-id": "an-id", "X-MLflow-Timestamp": str(when), "X-MLflow-Signature": signature}


def test_parses_set_and_removed_aliases() -> None:
    body = content()
    event = parse_webhook(headers(body), body, SECRET, now=NOW + 5)
    assert event == AliasEvent("microseg-segmenter", "production", 3, "an-id")
    assert event.is_segmenter
    body = content("deleted", name="another model")
    event = parse_webhook(headers(body), body, SECRET, now=NOW)
    assert event is not None
    assert (event.version, event.is_segmenter) == (None, False)


def test_signature_equals_that_of_mlflow() -> None:
    """MLflow's private function as the independent implementation."""
    from mlflow.webhooks.delivery import _generate_hmac_signature

    body = content()
    expected = _generate_hmac_signature(SECRET, "an-id", str(NOW), body.decode())
    assert sign_webhook(SECRET, "an-id", str(NOW), body) == expected


@pytest.mark.parametrize("now", [NOW - 301, NOW + 301])
def test_rejects_old_and_future_webhooks(now: int) -> None:
    body = content()
    with pytest.raises(SignatureError, match="compare the clocks"):
        parse_webhook(headers(body), body, SECRET, now=now)
    assert abs(time.time() - NOW) > 301
    with pytest.raises(SignatureError):
        parse_webhook(headers(body), body, SECRET)


def test_rejects_other_secret_other_body_and_no_signature() -> None:
    body = content()
    for given in (
        headers(body, "another"),
        headers(content(version="4")),
        {},
        headers(body) | {"X-MLflow-Signature": "é"},
    ):
        with pytest.raises(SignatureError, match="expected a webhook signed with the shared secret"):
            parse_webhook(given, body, SECRET, now=NOW)
    later = headers(body) | {"X-MLflow-Timestamp": str(NOW + 1)}
    with pytest.raises(SignatureError):
        parse_webhook(later, body, SECRET, now=NOW)


def test_other_events_are_ignored() -> None:
    body = content(entity="registered_model")
    assert parse_webhook(headers(body), body, SECRET, now=NOW) is None


@pytest.mark.parametrize("body", [b"{}", b"[]", b"not json", b'{"entity": "model_version_alias", "action": "created"}'])
def test_rejects_signed_invalid_content(body: bytes) -> None:
    with pytest.raises(SignatureError, match="expected MLflow's JSON"):
        parse_webhook(headers(body), body, SECRET, now=NOW)


def test_database_sends_no_webhooks(registry: Registry) -> None:
    assert not registry.webhooks.subscribe("http://127.0.0.1:9/mlflow", SECRET)
    assert registry.webhooks.subscriptions() == []


def test_subscribe_keeps_one_webhook(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database stores webhooks like a server, but sends none."""
    monkeypatch.setenv("MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY", base64.urlsafe_b64encode(bytes(32)).decode())
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "http,https")
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true")
    monkeypatch.setattr("microseg.registry.webhooks.is_server", lambda _uri: True)
    client = MlflowClient(tracking_uri=registry.tracking_uri, registry_uri=registry.tracking_uri)
    reevent = WebhookEvent.from_str("model_version_alias.deleted")
    client.create_webhook("others", "http://127.0.0.1:9/else", [reevent])
    client.create_webhook("microseg", "http://127.0.0.1:9/before", [reevent])
    url = "http://127.0.0.1:9/mlflow"
    for _ in range(2):
        assert registry.webhooks.subscribe(url, SECRET)
        assert registry.webhooks.subscriptions() == [(url, True)]
    hooks = {hook.name: hook for hook in client.list_webhooks()}
    assert hooks.keys() == {"others", "microseg"}
    client.update_webhook(hooks["microseg"].webhook_id, status="DISABLED")
    assert registry.webhooks.subscriptions() == [(url, False)]
    registry.webhooks.subscribe(url, SECRET)
    assert registry.webhooks.subscriptions() == [(url, True)]
