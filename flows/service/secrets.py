"""The secrets that microseg makes for itself, in its home: readable by its user alone, made once."""

import base64
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from microseg.config.settings import Settings

__all__ = ["encryption_key", "webhook_secret"]


def webhook_secret(settings: Settings) -> str:
    """What the MLflow server signs its webhooks with: MICROSEG_WEBHOOK_SECRET, else one kept in the home."""
    given = settings.environment.microseg_webhook_secret
    return given or _kept(settings.home.secrets / "webhook-secret", lambda: secrets.token_urlsafe(32))


def encryption_key(settings: Settings) -> str:
    """The key with which an MLflow server keeps that secret in its database, a Fernet key.

    With another one after a restart it cannot read the secret, and sends nothing, silently.
    """
    return _kept(
        settings.home.secrets / "mlflow-webhook.key", lambda: base64.urlsafe_b64encode(os.urandom(32)).decode()
    )


def _kept(path: Path, make: Callable[[], str]) -> str:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    if not path.is_file():
        with suppress(FileExistsError), open(os.open(part, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
            file.write(make())
        with suppress(FileExistsError):  # another process was quicker: its secret counts
            os.link(part, path)
        part.unlink(missing_ok=True)
    return path.read_text().strip()
