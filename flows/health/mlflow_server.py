"""MLflow: the registry, the aliases in it, its word of promotions."""

import re
from collections.abc import Iterator
from importlib.metadata import version

import httpx
from packaging.version import Version

from flows.health.finding import Finding
from flows.workspace import open_workspace
from microseg.config.settings import Settings
from microseg.errors import MicrosegError
from microseg.registry.connection import is_server
from microseg.registry.version import PRODUCTION

__all__ = ["aliases", "registry", "webhook"]


def registry(settings: Settings) -> Iterator[Finding]:
    """Whether MLflow answers, and has the version of this machine."""
    uri = settings.environment.tracking_uri
    shown = re.sub(r"//[^/@]+@", "//***@", uri)
    try:
        open_workspace(settings).registry.versions.all()
    except MicrosegError as error:  # among them: hosts that the server was not told of
        yield Finding("MLflow", "error", str(error), "see mlflow/README.md")
        return
    if not is_server(uri):
        yield Finding("MLflow", "ok", f"{shown}: a database; no word comes of promotions, reconcile looks for them")
        return
    with _http() as client:
        served = client.get(f"{uri.rstrip('/')}/version").text.strip()
    yield Finding("MLflow", "ok", f"{shown}, version {served}")
    if served and Version(served).release[:2] != Version(version("mlflow")).release[:2]:
        yield Finding(
            "MLflow",
            "warning",
            f"the server has {served}, this machine {version('mlflow')}",
            f"pip install mlflow=={served}, or update the server and run `mlflow db upgrade`",
        )


def aliases(settings: Settings) -> Iterator[Finding]:
    """Aliases are case-sensitive; one that is spelled otherwise promotes nothing, and nobody is told."""
    opened = open_workspace(settings).registry
    known = {path.stem for path in (open_workspace(settings).datasets.root / "history").glob("*.jsonl")}
    odd = False
    for one in opened.versions.all():
        for alias in one.aliases:
            plain = alias.strip().lower().replace("_", "-")
            lab = alias.removeprefix(f"{PRODUCTION}-")
            if alias.startswith(f"{PRODUCTION}-") and lab not in known:
                odd = True
                yield Finding(
                    "aliases",
                    "warning",
                    f"version {one.version} has {alias!r}, and there is no lab {lab!r}",
                    f"labs are {', '.join(sorted(known)) or 'none'}: set {PRODUCTION}-<one of them>, remove this",
                )
            elif plain.startswith("prod") and alias != PRODUCTION and not alias.startswith(f"{PRODUCTION}-"):
                odd = True
                yield Finding(
                    "aliases",
                    "error",
                    f"version {one.version} has {alias!r}, which puts nothing into production",
                    f"set {PRODUCTION!r}, in lower case, and remove this one",
                )
    for change in opened.production.pending_changes():
        odd = True
        yield Finding(
            "aliases",
            "warning",
            f"pending alias change: {change.alias} was set from version {change.active_version or '–'} to "
            f"{change.requested_version or '–'}",
            "microseg service validate-promotion, or see that microseg serve runs",
        )
    if not odd:
        current = open_workspace(settings).production()
        yield Finding("aliases", "ok", f"version {current.version} is in production" if current else "none is set yet")


def webhook(settings: Settings) -> Iterator[Finding]:
    """Whether MLflow's word of a promotion arrives."""
    if not is_server(settings.environment.tracking_uri):
        return
    hooks = open_workspace(settings).registry.webhooks.subscriptions()
    if not hooks:
        yield Finding(
            "webhook", "warning", "MLflow tells nobody of promotions; the poll finds them later", "run microseg serve"
        )
        return
    url, active = hooks[0]
    if not active:
        yield Finding(
            "webhook", "error", f"the webhook to {url} is switched off", "run microseg serve, which corrects it"
        )
        return
    try:
        with _http() as client:
            client.get(url.removesuffix("/mlflow") + "/health").raise_for_status()
    except httpx.HTTPError as error:
        yield Finding(
            "webhook",
            "error",
            f"MLflow tells {url} of promotions, and nothing answers there ({type(error).__name__})",
            "run microseg serve, with MICROSEG_WEBHOOK_URL as MLflow's server reaches it",
        )
        return
    # only the server knows whether it can read its secret: have it send one
    status, said = open_workspace(settings).registry.webhooks.send_test()
    if status is not None and status < 400:
        yield Finding("webhook", "ok", f"a signed delivery to {url} was believed")
    else:
        yield Finding(
            "webhook",
            "error",
            f"a delivery to {url} failed: {status or ''} {said}".strip(),
            "start MLflow's server with the same MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY each time, and with "
            "MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https and MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true where needed; then "
            "restart microseg serve",
        )


def _http() -> httpx.Client:
    return httpx.Client(timeout=10, trust_env=False)
