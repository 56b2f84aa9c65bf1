"""Which version a name means: an alias, a number, or ``candidate`` where there is only one."""

from collections.abc import Callable, Mapping, Sequence

from microseg.errors import VersionNotFoundError
from microseg.registry.version import (
    CANDIDATE,
    MODEL_NAME,
    PREVIOUS,
    PRODUCTION,
    ModelVersion,
    is_candidate,
    is_production,
)

__all__ = ["not_found_message", "version_number"]

_ADVICE = {
    PRODUCTION: f"promote one, or set the alias {PRODUCTION!r} on it in the MLflow user interface",
    CANDIDATE: "adapt to a new lab to get a candidate, or name a version by its number",
    PREVIOUS: "there is nothing to roll back to; promote a version by its number instead",
}


def version_number(key: str, aliases: Mapping[str, int], active: Callable[[str], int | None]) -> int | None:
    """Number that a name means; None if it means none.

    Args:
        key: Alias or number.
        aliases: Version of each alias in MLflow.
        active: Returns the active version of an alias of production, which MLflow's may differ from.

    Raises:
        VersionNotFoundError: ``candidate`` is asked for, and there are several.
    """
    if is_production(key):
        return active(key)
    if key != CANDIDATE or key in aliases:
        return aliases.get(key, int(key) if key.isdecimal() else None)
    candidates = {alias: number for alias, number in aliases.items() if is_candidate(alias)}
    if len(set(candidates.values())) > 1:
        listing = ", ".join(f"{alias} (version {number})" for alias, number in sorted(candidates.items()))
        raise VersionNotFoundError(f"expected one candidate, there are {listing}; give one of these aliases")
    return next(iter(candidates.values()), None)


def not_found_message(key: str, known: Sequence[ModelVersion], aliases: Mapping[str, int]) -> str:
    """Message of a name that means no version: what there is, and what to do.

    Args:
        key: Alias or number.
        known: The existing versions.
        aliases: Version of each alias in MLflow.
    """
    expected = f"expected version {key!r} of {MODEL_NAME}"
    if is_production(key) and key in aliases:
        return (
            f"{expected}, version {aliases[key]} is requested, but not validated yet; "
            "run `microseg service validate-promotion`"
        )
    if not known:
        return f"{expected}, the registry has none yet; train a first model from a labelled lab"
    listing = ", ".join(f"{v.version} ({', '.join(v.aliases)})" if v.aliases else str(v.version) for v in known)
    general = next((name for name in (PRODUCTION, PREVIOUS) if key.startswith(f"{name}-")), key)  # for all labs
    return f"{expected}, there are {listing}; {_ADVICE.get(general, 'give one of these numbers or aliases')}"
