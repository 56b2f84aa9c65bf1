"""Notifications to people: failures, candidates that wait for a decision, reverted promotions, drift warnings.

The addresses are those of ``notify`` in params.yaml, in the notation of Apprise (https://appriseit.com/services):
``mailto://…``, ``slack://…``, ``msteams://…``, ``json://…`` and others. A notification is first written to the home,
and delivered by the flow or by `microseg serve`, so that none is lost while a mail server is away, and each is sent
once.
"""

import json
import logging
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from microseg.config.environment import Home
from microseg.config.settings import Settings
from microseg.errors import SettingsError
from microseg.escaping import printable
from microseg.files import write_text_file
from microseg.locks import try_lock
from microseg.parsing import parse_json

__all__ = ["deliver", "notify_people", "open_addresses", "undelivered"]

_KEPT = timedelta(days=7)  # a notification that could not be delivered is dropped after this time
_LONGEST = 4000  # characters of a message

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Notification:
    title: str
    message: str
    created: str
    delivered: tuple[str, ...] = ()  # hashes of the addresses


def notify_people(settings: Settings, title: str, message: str, *, identity: str) -> None:
    """Notify the people whose addresses the parameters state; nothing where there are none. It raises no error.

    Args:
        settings: State the addresses.
        title: What happened, in a few words.
        message: What happened, and what to do.
        identity: The same for the same happening: it is sent once.
    """
    if not settings.params.notify:
        return
    folder, name = _folder(settings.home), str(uuid5(NAMESPACE_URL, identity))
    try:
        if (folder / f"{name}.json").exists() or (folder / f"{name}.sent").exists():
            return
        message = printable(message, keep="\n")[:_LONGEST]
        _write(folder / f"{name}.json", _Notification(printable(title), message, datetime.now(UTC).isoformat()))
        deliver(settings)
    except Exception as error:
        _log.warning("The notification %r could not be sent: %s", title, error)


def deliver(settings: Settings) -> None:
    """Deliver the notifications that wait.

    Args:
        settings: State the addresses.

    Raises:
        SettingsError: An address is invalid.
    """
    folder = _folder(settings.home)
    if not settings.params.notify or not any(folder.glob("*.json")):
        return
    addresses = open_addresses(settings)
    with try_lock(folder / ".lock") as locked:
        if not locked:  # another process is delivering them
            return
        for file in sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime):
            _deliver_one(file, addresses)
        for file in folder.glob("*.sent"):
            if time.time() - file.stat().st_mtime > 4 * _KEPT.total_seconds():
                file.unlink(missing_ok=True)


def _deliver_one(file: Path, addresses: dict[str, Any]) -> None:
    try:
        values = parse_json(file.read_bytes())
        notification = _Notification(**values | {"delivered": tuple(values["delivered"])})
        created = datetime.fromisoformat(notification.created)
    except (ValueError, TypeError, KeyError) as error:  # it must not hold up the others
        _log.error("%s: expected a notification, got %s. It was set aside as %s.damaged.", file, error, file.name)
        file.rename(file.with_name(f"{file.name}.damaged"))
        return
    for key in addresses.keys() - set(notification.delivered):
        if addresses[key].notify(title=notification.title, body=notification.message):
            delivered = (*notification.delivered, key)
            notification = _Notification(**asdict(notification) | {"delivered": delivered})
            _write(file, notification)
        else:
            _log.warning(
                "%s could not be delivered to %s: it is tried again", notification.title, _shown(addresses[key])
            )
    late = datetime.now(UTC) - created > _KEPT
    if set(notification.delivered) >= addresses.keys() or late:
        if not set(notification.delivered) >= addresses.keys():
            _log.error("%s was not delivered within %d days, and is dropped", notification.title, _KEPT.days)
        file.rename(file.with_suffix(".sent"))


def undelivered(home: Home) -> int:
    """Number of notifications that could not be delivered yet."""
    return len(list(_folder(home).glob("*.json")))


def open_addresses(settings: Settings) -> dict[str, Any]:
    """An Apprise object for each address, by the hash of the address.

    Raises:
        SettingsError: An address is invalid.
    """
    import apprise

    logging.getLogger("apprise").setLevel(logging.ERROR)  # it logs the failed deliveries too
    opened: dict[str, Any] = {}
    for number, secret in enumerate(settings.params.notify, start=1):
        address = secret.get_secret_value()
        target = apprise.Apprise(asset=apprise.AppriseAsset(app_id="microseg", app_desc="microseg"))
        if not target.add(address):
            raise SettingsError(
                f"notify: expected addresses of Apprise such as mailto://, slack:// or json://, got another at "
                f"position {number} ({address.partition('://')[0][:20]}…). See https://appriseit.com/services."
            )
        opened[sha256(address.encode()).hexdigest()[:16]] = target
    return opened


def _shown(target: Any) -> str:
    """An address without its secrets."""
    return ", ".join(server.url(privacy=True).partition("?")[0] for server in target)


def _folder(home: Home) -> Path:
    return home.records / "notifications"


def _write(file: Path, notification: _Notification) -> None:
    write_text_file(file, json.dumps(asdict(notification), indent=2) + "\n")
