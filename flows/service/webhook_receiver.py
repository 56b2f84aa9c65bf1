"""Receive MLflow's signed webhooks, and emit Prefect events.

    python -m flows.service.webhook_receiver

MLflow sends a webhook when an alias changes; Prefect starts runs on events. This receiver verifies the signature of a
webhook and emits the event `microseg.promotion.requested` if it concerns production. `microseg serve` runs it.
"""

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import httpx
import typer

from flows.cli.console import console
from flows.cli.options import cli_command
from flows.service.events import PROMOTION_REQUESTED, emit
from flows.workspace import open_workspace
from microseg.config.settings import Settings, load_settings
from microseg.errors import RegistryError, SettingsError
from microseg.registry.version import is_production
from microseg.registry.webhooks import AliasEvent, SignatureError, parse_webhook

__all__ = ["command", "webhook_receiver"]

_PATH = "/mlflow"
_MAX_BODY = 1_000_000  # bytes; a webhook has some hundred

_log = logging.getLogger(__name__)


@contextmanager
def webhook_receiver(settings: Settings) -> Iterator[str]:
    """Receive webhooks, in threads of this process, while the block runs.

    Args:
        settings: Settings with host and port.

    Yields:
        The URL for MLflow.

    Raises:
        SettingsError: The port is in use, or the URL is not valid.
    """
    url = urlsplit(settings.environment.microseg_webhook_url)
    try:
        port = url.port
        assert port is not None
        server = ThreadingHTTPServer((settings.environment.microseg_webhook_host, port), _handler(settings))
    except (ValueError, AssertionError, OSError, OverflowError) as error:
        raise SettingsError(
            f"Expected a free port in MICROSEG_WEBHOOK_URL, such as http://127.0.0.1:4280, got {url.geturl()}: "
            f"{error or 'no port'}. Use another port, or stop the process that uses it."
        ) from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="webhook_receiver", daemon=True)
    thread.start()
    try:
        yield f"{url.scheme}://{url.netloc}{_PATH}"
    finally:
        server.shutdown()
        server.server_close()


def _handler(settings: Settings) -> type[BaseHTTPRequestHandler]:
    secret = settings.environment.webhook_secret

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/health":
                self._respond(200, "OK")
            else:
                self._respond(404, "not found")

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if self.path != _PATH:
                self._respond(404, "not found")
            elif not 0 < length <= _MAX_BODY:
                self._respond(413, "body missing or too large")
            else:
                self._respond(*_process(dict(self.headers.items()), self.rfile.read(length), secret, settings))

        def _respond(self, code: int, message: str) -> None:
            content = json.dumps({"message": message}).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            _log.debug(format, *args)

    return Handler


def _process(headers: dict[str, str], body: bytes, secret: str, settings: Settings) -> tuple[int, str]:
    """Verify a webhook and emit an event if it concerns production; returns status code and message."""
    try:
        event = parse_webhook(headers, body, secret)
    except SignatureError as error:
        _log.warning("Rejected a webhook: %s", error)
        return 401, "invalid signature"
    if event is None or not event.is_segmenter or not is_production(event.alias):
        return 200, "ignored: not about an alias of production"
    if not _is_pending(event, settings):
        return 200, "ignored: no pending alias change"
    payload = {"alias": event.alias, "version": event.version}
    try:
        emit(PROMOTION_REQUESTED, f"microseg.alias.{event.alias}", payload, identity=event.delivery_id)
    except httpx.HTTPError as error:
        _log.error("Could not emit an event for the change of %s: %r", event.alias, error)
        return 503, "the Prefect server cannot be reached"  # so that MLflow retries
    _log.info("%s was set to version %s: event emitted", event.alias, event.version)
    return 202, "event emitted"


def _is_pending(event: AliasEvent, settings: Settings) -> bool:
    """Whether the change has to be validated: not if microseg changed the alias itself."""
    try:
        pending = open_workspace(settings).registry.production.pending_changes()
    except RegistryError as error:
        _log.warning("Cannot compare %s with the history, so its change is validated: %s", event.alias, error)
        return True
    return event.alias in {change.alias for change in pending}


@cli_command()
def command() -> None:
    """Receive MLflow's webhooks and emit Prefect events, until Ctrl-C; `microseg serve` runs it.

    It listens at MICROSEG_WEBHOOK_URL, http://127.0.0.1:4280 by default.
    """
    settings = load_settings()
    with webhook_receiver(settings) as url:
        if not open_workspace(settings).registry.webhooks.subscribe(url, settings.environment.webhook_secret):
            raise SettingsError(
                "Expected an MLflow server in MLFLOW_TRACKING_URI, got a database, which sends no webhooks: start a "
                "server, or use the deployment reconcile, which finds promotions without webhooks."
            )
        console.print(f"MLflow at {settings.environment.tracking_uri} sends webhooks to {url}. Ctrl-C stops.")
        threading.Event().wait()


if __name__ == "__main__":
    typer.run(command)
