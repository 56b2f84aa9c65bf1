"""MLflow's signed webhook → a Prefect event.

    python -m flows.service.webhook_receiver

MLflow can tell an address when an alias is moved, in words of its own; Prefect starts runs by events, in words of its
own. Between them this listens, believes nobody who does not know the shared secret, and passes on what concerns
production. `microseg serve` does this itself.
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
from microseg.registry.webhooks import AliasChange, SignatureError, read_webhook

__all__ = ["command", "subscribe", "webhook_receiver"]

_PATH = "/mlflow"
_LARGEST_BODY = 1_000_000  # bytes; a delivery has some hundred

_log = logging.getLogger(__name__)


@contextmanager
def webhook_receiver(settings: Settings) -> Iterator[str]:
    """Listen, in threads of this process, while the block runs.

    Args:
        settings: where to listen.

    Yields:
        The address to give MLflow.

    Raises:
        SettingsError: the port is taken, or the address is none.
    """
    url = urlsplit(settings.environment.microseg_webhook_url)
    try:
        port = url.port
        assert port is not None
        server = ThreadingHTTPServer((settings.environment.microseg_webhook_host, port), _handler(settings))
    except (ValueError, AssertionError, OSError, OverflowError) as error:
        raise SettingsError(
            f"Expected a free port in MICROSEG_WEBHOOK_URL, such as http://127.0.0.1:4280, got {url.geturl()}: "
            f"{error or 'no port'}. Name another, or stop what listens there."
        ) from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="webhook_receiver", daemon=True)
    thread.start()
    try:
        yield f"{url.scheme}://{url.netloc}{_PATH}"
    finally:
        server.shutdown()
        server.server_close()


def subscribe(settings: Settings, url: str) -> bool:
    """Have the MLflow server send its word here.

    Args:
        settings: where the server is.
        url: of the bridge, as the server reaches it.

    Returns:
        False where there is no server, only a database: it sends nothing.

    Raises:
        RegistryError: the server refuses.
    """
    return open_workspace(settings).registry.webhooks.deliver_to(url, settings.environment.webhook_secret)


def _handler(settings: Settings) -> type[BaseHTTPRequestHandler]:
    secret = settings.environment.webhook_secret

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200 if self.path == "/health" else 404, "OK" if self.path == "/health" else "")

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if self.path != _PATH or not 0 < length <= _LARGEST_BODY:
                self._answer(404 if self.path != _PATH else 413, "")
                return
            body = self.rfile.read(length)
            try:
                moved = read_webhook(dict(self.headers.items()), body, secret)
            except SignatureError as error:
                _log.warning("A delivery from %s is not believed: %s", self.client_address[0], error)
                self._answer(401, "not believed")
                return
            if moved is None or not moved.ours or not is_production(moved.alias):
                self._answer(200, "does not concern production")
                return
            if _settled(moved, settings):
                self._answer(200, "settled already")
                return
            payload = {"alias": moved.alias, "version": moved.version}
            try:
                emit(PROMOTION_REQUESTED, f"microseg.alias.{moved.alias}", payload, identity=moved.delivery)
            except httpx.HTTPError as error:
                _log.error("Prefect could not be told that %s was moved: %r", moved.alias, error)
                self._answer(503, "Prefect cannot be reached")  # so that MLflow tries again
                return
            _log.info("%s was moved to version %s: told Prefect", moved.alias, moved.version)
            self._answer(202, "told Prefect")

        def _answer(self, code: int, said: str) -> None:
            content = json.dumps({"said": said}).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            _log.debug(format, *args)

    return Handler


def _settled(moved: AliasChange, settings: Settings) -> bool:
    """Whether microseg moved the alias itself, or is about to: no run is needed then."""
    try:
        return moved.alias not in {change.alias for change in open_workspace(settings).registry.pending_changes()}
    except RegistryError as error:
        _log.warning("Whether %s is settled is not known, so it is looked at: %s", moved.alias, error)
        return False


@cli_command
def command() -> None:
    """Pass MLflow's word of a promotion on to Prefect, until Ctrl-C; `microseg serve` does this itself.

    It listens at MICROSEG_WEBHOOK_URL, http://127.0.0.1:4280 by default.
    """
    settings = load_settings()
    with webhook_receiver(settings) as url:
        if not subscribe(settings, url):
            raise SettingsError(
                "Expected an MLflow server in MLFLOW_TRACKING_URI, found a database: only a server sends word of "
                "promotions. Without one they are noticed by the deployment reconcile."
            )
        console.print(f"MLflow at {settings.environment.tracking_uri} sends word of promotions to {url}. Ctrl-C ends.")
        threading.Event().wait()


if __name__ == "__main__":
    typer.run(command)
