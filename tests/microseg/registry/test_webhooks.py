"""A delivery is believed only when it is signed, fresh, and MLflow's; one webhook of ours asks for it."""

import base64
import json
import time

import pytest
from mlflow import MlflowClient
from mlflow.entities.webhook import WebhookEvent

from microseg.registry.registry import Registry
from microseg.registry.webhooks import AliasChange, SignatureError, read_webhook, sign_webhook

SECRET = "a secret"
NOW = 1_750_000_000


def delivery(action: str = "created", entity: str = "model_version_alias", **data: str) -> bytes:
    facts = {"name": "microseg-segmenter", "alias": "production", "version": "3"} | data
    return json.dumps({"entity": entity, "action": action, "timestamp": "…", "data": facts}).encode()


def headers(body: bytes, secret: str = SECRET, when: int = NOW) -> dict[str, str]:
    signature = sign_webhook(secret, "an-id", str(when), body)
    return {"x-mlflow-delivery-id": "an-id", "X-MLflow-Timestamp": str(when), "X-MLflow-Signature": signature}


def test_an_alias_that_was_set_and_one_that_was_removed() -> None:
    body = delivery()
    moved = read_webhook(headers(body), body, SECRET, now=NOW + 5)
    assert moved == AliasChange("microseg-segmenter", "production", 3, "an-id")
    assert moved.ours
    body = delivery("deleted", name="another model")
    moved = read_webhook(headers(body), body, SECRET, now=NOW)
    assert moved is not None
    assert (moved.version, moved.ours) == (None, False)


def test_mlflow_signs_the_same_way() -> None:
    """Its own function, which is not public, as the independent one."""
    from mlflow.webhooks.delivery import _generate_hmac_signature

    body = delivery()
    expected = _generate_hmac_signature(SECRET, "an-id", str(NOW), body.decode())
    assert sign_webhook(SECRET, "an-id", str(NOW), body) == expected


@pytest.mark.parametrize("now", [NOW - 301, NOW + 301])
def test_an_old_one_or_one_of_the_future(now: int) -> None:
    body = delivery()
    with pytest.raises(SignatureError, match="do the clocks agree"):
        read_webhook(headers(body), body, SECRET, now=now)
    assert abs(time.time() - NOW) > 301
    with pytest.raises(SignatureError):
        read_webhook(headers(body), body, SECRET)


def test_another_secret_another_body_or_no_signature() -> None:
    body = delivery()
    for given in (
        headers(body, "another"),
        headers(delivery(version="4")),
        {},
        headers(body) | {"X-MLflow-Signature": "é"},
    ):
        with pytest.raises(SignatureError, match="expected a delivery signed with the shared secret"):
            read_webhook(given, body, SECRET, now=NOW)
    later = headers(body) | {"X-MLflow-Timestamp": str(NOW + 1)}
    with pytest.raises(SignatureError):
        read_webhook(later, body, SECRET, now=NOW)


def test_what_is_about_something_else() -> None:
    body = delivery(entity="registered_model")
    assert read_webhook(headers(body), body, SECRET, now=NOW) is None


@pytest.mark.parametrize("body", [b"{}", b"[]", b"no json", b'{"entity": "model_version_alias", "action": "created"}'])
def test_signed_nonsense(body: bytes) -> None:
    with pytest.raises(SignatureError, match="expected MLflow's JSON"):
        read_webhook(headers(body), body, SECRET, now=NOW)


def test_a_database_tells_nobody(registry: Registry) -> None:
    assert not registry.webhooks.deliver_to("http://127.0.0.1:9/mlflow", SECRET)
    assert registry.webhooks.addresses() == []


def test_of_several_webhooks_one_is_left_and_corrected(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database keeps webhooks as a server does, which only sends them."""
    monkeypatch.setenv("MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY", base64.urlsafe_b64encode(bytes(32)).decode())
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "http,https")
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true")
    monkeypatch.setattr("microseg.registry.webhooks.is_server", lambda _uri: True)
    client = MlflowClient(tracking_uri=registry.tracking_uri, registry_uri=registry.tracking_uri)
    removed = WebhookEvent.from_str("model_version_alias.deleted")
    client.create_webhook("others", "http://127.0.0.1:9/else", [removed])
    client.create_webhook("microseg", "http://127.0.0.1:9/before", [removed])
    url = "http://127.0.0.1:9/mlflow"
    for _ in range(2):
        assert registry.webhooks.deliver_to(url, SECRET)
        assert registry.webhooks.addresses() == [(url, True)]
    hooks = {hook.name: hook for hook in client.list_webhooks()}
    assert hooks.keys() == {"others", "microseg"}
    client.update_webhook(hooks["microseg"].webhook_id, status="DISABLED")
    assert registry.webhooks.addresses() == [(url, False)]
    registry.webhooks.deliver_to(url, SECRET)
    assert registry.webhooks.addresses() == [(url, True)]
