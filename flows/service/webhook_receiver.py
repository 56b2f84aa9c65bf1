"""Receive MLflow's signed webhooks, and emit Prefect events.

    python -m flows.service.webhook_receiver

MLflow sends a webhook when an alias changes; Prefect starts runs on events. This receiver verifies the signature of a
webhook and emits the event `microseg.promotion.requested` if it concerns production. `microseg serve` runs it.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import typer
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from flows.cli.console import console
from flows.cli.options import cli_command
from flows.service.events import PROMOTION_REQUESTED, emit
from flows.service.ports import check_port_free
from flows.service.processes import report_ready
from flows.workspace import open_workspace
from microseg.config.environment import is_server
from microseg.config.settings import Settings, load_settings
from microseg.errors import MicrosegError, RegistryError, SettingsError
from microseg.escaping import mask_secrets
from microseg.registry.version import resembles_production
from microseg.registry.webhooks import AliasEvent, SignatureError, parse_webhook

__all__ = ["command", "webhook_receiver"]

_PATH = "/mlflow"
_MAX_BODY = 1_000_000  # bytes; a webhook has some hundred
_MAX_DISCARDED = 2**24  # bytes, of a larger body that is read to its end
_MAX_CONNECTIONS = 32
_READ_SECONDS = 10.0  # time for a client to send its whole request
_CONNECTION_SECONDS = 30.0  # time after which any connection is closed
_SUBSCRIBE_SECONDS = 30.0  # between two attempts to register the webhook

_log = logging.getLogger(__name__)


class _BoundedProtocol(H11Protocol):
    """HTTP with a bounded number of connections, each of bounded duration: uvicorn waits for slow clients for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or close it at once if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > _MAX_CONNECTIONS:
            _log.warning("Refused a connection: there are %d already", _MAX_CONNECTIONS)
            transport.abort()
            return
        self._first_request = self.loop.call_later(_READ_SECONDS, self._close_unless_requested)
        self._deadline = self.loop.call_later(_CONNECTION_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        super().connection_lost(exc)
        for timer in (getattr(self, "_first_request", None), getattr(self, "_deadline", None)):
            if timer is not None:
                timer.cancel()

    def _close_unless_requested(self) -> None:
        if self.cycle is None:
            self.transport.abort()


@contextmanager
def webhook_receiver(settings: Settings) -> Iterator[str]:
    """Receive webhooks, in a thread of this process, while the block runs.

    Args:
        settings: Settings with host and port.

    Yields:
        The URL for MLflow.

    Raises:
        SettingsError: The port is in use, or the URL is not valid.
    """
    url, host = urlsplit(settings.environment.microseg_webhook_url), settings.environment.microseg_webhook_host
    try:
        port = url.port
        assert port
    except (ValueError, AssertionError) as error:
        raise SettingsError(
            f"Expected a port in MICROSEG_WEBHOOK_URL, such as http://127.0.0.1:4280, got "
            f"{mask_secrets(url.geturl())}: {error or 'no port'}. Correct it."
        ) from error
    check_port_free(host, port, "MICROSEG_WEBHOOK_URL")
    config = uvicorn.Config(
        _application(settings),
        host=host,
        port=port,
        http=_BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="webhook_receiver", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise SettingsError(
                f"Expected an interface of this machine in MICROSEG_WEBHOOK_HOST, got {host}. Use 127.0.0.1 or 0.0.0.0."
            )
        time.sleep(0.05)
    try:
        yield f"{url.scheme}://{url.netloc}{_PATH}"
    finally:
        server.should_exit = True
        thread.join()


def _application(settings: Settings) -> Starlette:
    secret = settings.environment.webhook_secret

    async def health(_: Request) -> Response:
        return _response(200, "OK")

    async def receive(request: Request) -> Response:
        try:
            async with asyncio.timeout(_READ_SECONDS):
                body = await _read(request)
        except TimeoutError:
            return _response(408, f"expected the whole request within {_READ_SECONDS:.0f} s")
        except ClientDisconnect:
            return _response(400, "the body is shorter than its stated length")
        if body is None:
            return _response(413, f"expected at most {_MAX_BODY} bytes")
        if not body:
            return _response(400, "expected a body")
        try:
            async with asyncio.timeout(_CONNECTION_SECONDS - _READ_SECONDS):
                return _response(*await run_in_threadpool(_process, dict(request.headers), body, secret, settings))
        except TimeoutError:  # MLflow or Prefect is away
            return _response(503, "a server cannot be reached")

    async def failed(_: Request, error: Exception) -> Response:
        _log.error("A webhook could not be processed: %r", error)
        return _response(500, "internal error")

    handlers: dict[Any, Callable[..., Any]] = {Exception: failed}
    routes = [Route("/health", health, methods=["GET"]), Route(_PATH, receive, methods=["POST"])]
    return Starlette(routes=routes, exception_handlers=handlers)


async def _read(request: Request) -> bytes | None:
    """The body of a request; None if it is too large. One that is not much too large is read to its end, since many
    clients see the answer only when they have sent it all.
    """
    if int(request.headers.get("content-length", 0)) > _MAX_DISCARDED:  # a number here
        return None
    body, received = b"", 0
    async for part in request.stream():
        received += len(part)
        if received <= _MAX_BODY:
            body += part
        elif received > _MAX_DISCARDED:
            break
    return body if received <= _MAX_BODY else None


def _response(code: int, message: str) -> Response:
    return JSONResponse({"message": message}, code, headers={"Connection": "close"})


def _process(headers: dict[str, str], body: bytes, secret: str, settings: Settings) -> tuple[int, str]:
    """Verify a webhook and emit an event if it concerns production; returns status code and message."""
    try:
        event = parse_webhook(headers, body, secret)
    except SignatureError as error:
        _log.warning("Rejected a webhook: %s", error)
        return 401, "invalid signature"
    if event is None or not event.is_segmenter or not resembles_production(event.alias):
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
    """Whether the change has to be validated or reported: not if microseg changed the alias itself."""
    try:
        production = open_workspace(settings).registry.production
        pending = {change.alias for change in production.pending_changes()} | production.unreported_aliases()
    except RegistryError as error:
        _log.warning("Cannot compare %s with the history, so its change is validated: %s", event.alias, error)
        return True
    return event.alias in pending


def _subscribe(settings: Settings, url: str) -> None:
    """Register the webhook in MLflow; again until the server responds."""
    registry, shown = open_workspace(settings).registry, mask_secrets(settings.environment.tracking_uri)
    while True:
        try:
            registry.webhooks.subscribe(url, settings.environment.webhook_secret)
        except MicrosegError as error:
            _log.warning("%s Trying again in %.0f s.", error, _SUBSCRIBE_SECONDS)
            time.sleep(_SUBSCRIBE_SECONDS)
        else:
            console.print(f"MLflow at {shown} sends webhooks to {url}.", markup=False, soft_wrap=True)
            return


@cli_command()
def command() -> None:
    """Receive MLflow's webhooks and emit Prefect events, until Ctrl-C; `microseg serve` runs it.

    It listens at MICROSEG_WEBHOOK_URL, http://127.0.0.1:4280 by default.
    """
    settings = load_settings()
    if not is_server(settings.environment.tracking_uri):
        raise SettingsError(
            "Expected an MLflow server in MLFLOW_TRACKING_URI, got a database, which sends no webhooks: start a "
            "server, or use the deployment reconcile, which finds promotions without webhooks."
        )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("flows").setLevel(logging.INFO)
    with webhook_receiver(settings) as url:
        report_ready()
        _subscribe(settings, url)
        threading.Event().wait()


if __name__ == "__main__":
    typer.run(command)
