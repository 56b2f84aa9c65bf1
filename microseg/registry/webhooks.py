"""MLflow webhooks for changed aliases: subscribing to them, and verifying their signatures."""

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities.webhook import Webhook, WebhookEvent
from mlflow.webhooks.constants import (
    WEBHOOK_DELIVERY_ID_HEADER,
    WEBHOOK_SIGNATURE_HEADER,
    WEBHOOK_SIGNATURE_VERSION,
    WEBHOOK_TIMESTAMP_HEADER,
)

from microseg.errors import RegistryError
from microseg.parsing import parse_json
from microseg.registry.connection import Connection, all_pages, is_server
from microseg.registry.version import MODEL_NAME

__all__ = ["AliasEvent", "SignatureError", "Webhooks", "parse_webhook", "sign_webhook"]

WEBHOOK_NAME = "microseg"

_EVENTS = (WebhookEvent.from_str("model_version_alias.created"), WebhookEvent.from_str("model_version_alias.deleted"))
_MAX_AGE = 300  # seconds; older webhooks are rejected as replayed


class SignatureError(RegistryError):
    """A webhook whose origin cannot be verified."""


@dataclass(frozen=True)
class AliasEvent:
    """The content of a webhook: an alias was set or removed.

    Args:
        model: Name of the registered model.
        alias: The alias.
        version: The version that has the alias now; None if the alias was removed.
        delivery_id: ID of the webhook delivery, the same when MLflow retries.
    """

    model: str
    alias: str
    version: int | None
    delivery_id: str

    @property
    def is_segmenter(self) -> bool:
        """Whether the registered model is microseg's."""
        return self.model == MODEL_NAME


class Webhooks:
    """The webhooks of an MLflow server; a database sends none.

    Args:
        connection: The connection to MLflow.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def subscribe(self, url: str, secret: str) -> bool:
        """Register a webhook for changed aliases, signed with a secret.

        A webhook of the same name is updated. The secret cannot be read back, so it is set each time.

        Args:
            url: The receiver, as the server reaches it.
            secret: Shared secret.

        Returns:
            False if MLflow is only a database.

        Raises:
            RegistryError: The server refuses or cannot be reached.
        """
        if not is_server(self._connection.tracking_uri):
            return False
        with self._connection.action("register a webhook (is MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY set?)") as client:
            found = _webhooks(client)
            same = [hook for hook in found if hook.url == url and set(hook.events) == set(_EVENTS)]
            for hook in found:
                if hook not in same[:1]:
                    client.delete_webhook(hook.webhook_id)
            if same:
                client.update_webhook(same[0].webhook_id, secret=secret, status="ACTIVE")
            else:
                text = "Notifies microseg of changed aliases."
                client.create_webhook(
                    WEBHOOK_NAME, url, list(_EVENTS), description=text, secret=secret, status="ACTIVE"
                )
        return True

    def subscriptions(self) -> list[tuple[str, bool]]:
        """Return the URL of each webhook, and whether it is active."""
        with self._connection.action("list webhooks") as client:
            return [(hook.url, hook.status == "ACTIVE") for hook in _webhooks(client)]

    def send_test(self) -> tuple[int | None, str]:
        """Let the server send a test webhook.

        Returns:
            Status code and text of the response; no status code if there was no response.
        """
        with self._connection.action("test a webhook") as client:
            result = client.test_webhook(_webhooks(client)[0].webhook_id)
        return result.response_status, result.error_message or result.response_body or ""


def parse_webhook(
    headers: Mapping[str, str], body: bytes, secret: str, *, now: float | None = None
) -> AliasEvent | None:
    """Parse a webhook after verifying its signature.

    Args:
        headers: Headers of the request; names are case-insensitive.
        body: Body of the request.
        secret: Shared secret.
        now: Current time in seconds since 1970.

    Returns:
        The event; None if it is not about an alias.

    Raises:
        SignatureError: The signature or the time is missing or wrong, or the body is not a webhook of MLflow.
    """
    given = {name.lower(): value for name, value in headers.items()}
    delivery_id, timestamp, signature = (
        given.get(name.lower(), "")
        for name in (WEBHOOK_DELIVERY_ID_HEADER, WEBHOOK_TIMESTAMP_HEADER, WEBHOOK_SIGNATURE_HEADER)
    )
    if not hmac.compare_digest(signature.encode(), sign_webhook(secret, delivery_id, timestamp, body).encode()):
        raise SignatureError(
            "expected a webhook signed with the shared secret, got another signature; check that no other server sends "
            "here, and that MLflow's key for stored secrets (MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY) did not change"
        )
    age = (time.time() if now is None else now) - float(timestamp if timestamp.isdecimal() else "nan")
    if not abs(age) <= _MAX_AGE:
        raise SignatureError(
            f"expected a webhook of the last {_MAX_AGE} s, got one of {age:.0f} s ago; compare the clocks of both "
            "machines"
        )
    try:
        content = parse_json(body)
        data = content["data"]
        if content["entity"] != "model_version_alias":
            return None
        version = int(data["version"]) if content["action"] == "created" else None
        return AliasEvent(str(data["name"]), str(data["alias"]), version, delivery_id)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SignatureError(
            f"expected MLflow's JSON about an alias, got {error!r}; check that this MLflow version is supported"
        ) from error


def sign_webhook(secret: str, delivery_id: str, timestamp: str, body: bytes) -> str:
    """Return the signature of a webhook.

    Reference:
        https://www.standardwebhooks.com: HMAC-SHA256 of ``<id>.<seconds>.<body>``, in base64, after a version.
    """
    content = f"{delivery_id}.{timestamp}.".encode() + body
    digest = hmac.new(secret.encode(), content, hashlib.sha256).digest()
    return f"{WEBHOOK_SIGNATURE_VERSION},{base64.b64encode(digest).decode()}"


def _webhooks(client: MlflowClient) -> list[Webhook]:
    return [
        hook for hook in all_pages(lambda token: client.list_webhooks(page_token=token)) if hook.name == WEBHOOK_NAME
    ]
