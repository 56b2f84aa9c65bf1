"""Finding versions by number, alias or legacy stage."""

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion as MlflowVersion
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException

from microseg.errors import VersionNotFoundError
from microseg.registry.version import (
    CANDIDATE,
    MODEL_NAME,
    PREVIOUS,
    PRODUCTION,
    ModelVersion,
    VersionRef,
    read_version,
)

__all__ = ["find_version", "list_versions", "registered_model", "staged_versions"]


def registered_model(client: MlflowClient) -> RegisteredModel | None:
    """MLflow's record of the registered model, with all its aliases; None while nothing is registered."""
    try:
        return client.get_registered_model(MODEL_NAME)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def list_versions(client: MlflowClient) -> tuple[ModelVersion, ...]:
    """All versions, the newest first."""
    model = registered_model(client)
    if model is None:
        return ()
    found = [read_version(entry, model.aliases) for entry in _entries(client)]
    return tuple(sorted(found, key=lambda version: version.version, reverse=True))


def find_version(client: MlflowClient, ref: VersionRef) -> ModelVersion:
    """The version with a number or alias; see `Registry.resolve`.

    Raises:
        VersionNotFoundError: There is no such version; the message lists those there are.
    """
    key = str(ref.version) if isinstance(ref, ModelVersion) else str(ref).strip()
    model = registered_model(client)
    if model is not None:
        number = str(model.aliases.get(key, key))
        if number.isdecimal():
            try:
                return read_version(client.get_model_version(MODEL_NAME, str(int(number))), model.aliases)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        if key == PRODUCTION and (staged := staged_versions(client)):
            return read_version(client.get_model_version(MODEL_NAME, str(max(staged))), model.aliases)
    raise VersionNotFoundError(_not_found(key, list_versions(client)))


def _entries(client: MlflowClient) -> list[MlflowVersion]:
    entries: list[MlflowVersion] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name='{MODEL_NAME}'", page_token=token)
        entries.extend(page)
        token = page.token
        if not token:
            return entries


def staged_versions(client: MlflowClient) -> tuple[int, ...]:
    """Numbers of the versions in MLflow's legacy stage Production; none where MLflow has no stages any more."""
    return tuple(
        int(entry.version) for entry in _entries(client) if getattr(entry, "current_stage", None) == "Production"
    )


def _not_found(key: str, known: tuple[ModelVersion, ...]) -> str:
    if not known:
        return (
            f"expected version {key!r} of {MODEL_NAME}, the registry has none yet; "
            "train a first model from a labelled lab"
        )
    listing = ", ".join(f"{v.version} ({', '.join(v.aliases)})" if v.aliases else str(v.version) for v in known)
    advice = {
        PRODUCTION: f"promote one, or set the alias {PRODUCTION!r} on it in the MLflow user interface",
        CANDIDATE: "adapt to a new lab to get a candidate, or name a version by its number",
        PREVIOUS: "there is nothing to go back to; promote a version by its number instead",
    }.get(_general(key), "give one of these numbers or aliases")
    return f"expected version {key!r} of {MODEL_NAME}, there are {listing}; {advice}"


def _general(alias: str) -> str:
    """``production-<lab>`` and ``previous-<lab>`` as what they are for all labs."""
    return next((name for name in (PRODUCTION, PREVIOUS) if alias.startswith(f"{name}-")), alias)
