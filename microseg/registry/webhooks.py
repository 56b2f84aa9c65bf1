"""MLflow's word that an alias was moved: asking its server to send it, and proving that it did."""

import base64
import hashlib
import hmac
import json
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
from microseg.registry.connection import Connection, is_server
from microseg.registry.version import MODEL_NAME

__all__ = [
    "AliasChange",
    "SignatureError",
    "Webhooks",
    "read_webhook",
    "sign_webhook",
]

WEBHOOK_NAME = "microseg"

_EVENTS = (WebhookEvent.from_str("model_version_alias.created"), WebhookEvent.from_str("model_version_alias.deleted"))
_FRESH_SECONDS = 300  # older deliveries are taken for repeated ones


class SignatureError(RegistryError):
    """A delivery that cannot be shown to come from the MLflow server."""


@dataclass(frozen=True)
class AliasChange:
    """What a delivery says.

    Args:
        model: The registered model.
        alias: Its alias.
        version: That has the alias now; None when the alias was removed.
        delivery: The delivery's own id, the same when it is tried again.
    """

    model: str
    alias: str
    version: int | None
    delivery: str

    @property
    def ours(self) -> bool:
        """Whether it is about microseg's model."""
        return self.model == MODEL_NAME


class Webhooks:
    """What an MLflow server tells of moved aliases, and whom.

    Args:
        connection: To the server; a database tells nobody.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def deliver_to(self, url: str, secret: str) -> bool:
        """Have the server tell an address, signed with a secret, when an alias is moved.

        A webhook of the same name is corrected. The secret cannot be read back, so it is set each time.

        Args:
            url: The address, as the server reaches it.
            secret: Shared with it.

        Returns:
            False where there is no server, only a database.

        Raises:
            RegistryError: The server refuses or cannot be reached.
        """
        if not is_server(self._connection.tracking_uri):
            return False
        with self._connection.asking("send webhooks (does it have MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY?)"):
            _ensure_webhook(self._connection.client, url, secret)
        return True

    def addresses(self) -> list[tuple[str, bool]]:
        """Where the server tells of moved aliases, and whether each of these is switched on."""
        with self._connection.asking("list webhooks"):
            return [(hook.url, hook.status == "ACTIVE") for hook in _ours(self._connection.client)]

    def try_delivery(self) -> tuple[int | None, str]:
        """Have the server send a made-up delivery.

        Returns:
            The answer's status and text; no status when there was no answer.
        """
        with self._connection.asking("try a webhook"):
            hook = _ours(self._connection.client)[0]
            result = self._connection.client.test_webhook(hook.webhook_id)
            return result.response_status, result.error_message or result.response_body or ""


def read_webhook(
    headers: Mapping[str, str], body: bytes, secret: str, *, now: float | None = None
) -> AliasChange | None:
    """Read a delivery after proving that whoever sent it knows the secret.

    Args:
        headers: Of the request; names in any case.
        body: Of the request, as it came.
        secret: Shared with the server.
        now: Seconds since 1970.

    Returns:
        What it says; None when it is about something else than aliases.

    Raises:
        SignatureError: Signature or time are missing or wrong, or it is no delivery at all.
    """
    given = {name.lower(): value for name, value in headers.items()}
    delivery, stamp, signature = (
        given.get(name.lower(), "")
        for name in (WEBHOOK_DELIVERY_ID_HEADER, WEBHOOK_TIMESTAMP_HEADER, WEBHOOK_SIGNATURE_HEADER)
    )
    if not hmac.compare_digest(signature.encode(), sign_webhook(secret, delivery, stamp, body).encode()):
        raise SignatureError(
            "expected a delivery signed with the shared secret, got another signature; is another server sending here, "
            "or was the key lost with which MLflow keeps the secret (MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY)?"
        )
    age = (time.time() if now is None else now) - float(stamp if stamp.isdecimal() else "nan")
    if not abs(age) <= _FRESH_SECONDS:
        raise SignatureError(
            f"expected a delivery of the last {_FRESH_SECONDS} s, got one of {age:.0f} s ago; do the clocks agree?"
        )
    try:
        said = json.loads(body)
        data = said["data"]
        if said["entity"] != "model_version_alias":
            return None
        version = int(data["version"]) if said["action"] == "created" else None
        return AliasChange(str(data["name"]), str(data["alias"]), version, delivery)
    except (ValueError, KeyError, TypeError) as error:
        raise SignatureError(f"expected MLflow's JSON about an alias, got {error!r}; is its version known?") from error


def sign_webhook(secret: str, delivery: str, stamp: str, body: bytes) -> str:
    """The signature that MLflow gives a delivery.

    Reference:
        https://www.standardwebhooks.com: HMAC-SHA256 of ``<id>.<seconds>.<body>``, in base64, after a version.
    """
    content = f"{delivery}.{stamp}.".encode() + body
    digest = hmac.new(secret.encode(), content, hashlib.sha256).digest()
    return f"{WEBHOOK_SIGNATURE_VERSION},{base64.b64encode(digest).decode()}"


def _ensure_webhook(client: MlflowClient, url: str, secret: str) -> None:
    found = _ours(client)
    same = [hook for hook in found if hook.url == url and set(hook.events) == set(_EVENTS)]
    for hook in found:
        if hook not in same[:1]:
            client.delete_webhook(hook.webhook_id)
    if same:
        client.update_webhook(same[0].webhook_id, secret=secret, status="ACTIVE")
        return
    client.create_webhook(
        WEBHOOK_NAME,
        url,
        list(_EVENTS),
        description="Tells microseg of a version promoted here.",
        secret=secret,
        status="ACTIVE",
    )


def _ours(client: MlflowClient) -> list[Webhook]:
    """The server's webhooks of microseg's name."""
    hooks: list[Webhook] = []
    token: str | None = None
    while True:
        page = client.list_webhooks(page_token=token)
        hooks.extend(hook for hook in page if hook.name == WEBHOOK_NAME)
        token = page.token
        if not token:
            return hooks
