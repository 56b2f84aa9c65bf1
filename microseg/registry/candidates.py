"""Candidates that another promotion has made outdated."""

from dataclasses import dataclass

from microseg.errors import VersionNotFoundError
from microseg.registry.registry import Registry
from microseg.registry.version import CANDIDATE, ModelVersion, is_candidate

__all__ = ["OutdatedCandidate", "outdated_candidates"]


@dataclass(frozen=True)
class OutdatedCandidate:
    """A candidate that lacks labs which the version in production was adapted to since.

    Args:
        lab: The lab that it was adapted to.
        version: The candidate.
        production: The version in production.
    """

    lab: str
    version: ModelVersion
    production: ModelVersion

    def __str__(self) -> str:
        lost = ", ".join(sorted(self.production.datasets.keys() - self.version.datasets.keys()))
        return (
            f"Version {self.version.version}, the candidate for {self.lab}, was not adapted to {lost}, and version "
            f"{self.production.version}, in production since, was: promoting it would lose {lost}. To keep all labs: "
            f"microseg adapt {self.lab}"
        )


def outdated_candidates(registry: Registry) -> tuple[OutdatedCandidate, ...]:
    """Find the candidates whose promotion would lose a lab."""
    try:
        production = registry.production.active()
    except VersionNotFoundError:
        return ()
    candidates = {
        alias: registry.versions.get(number)
        for alias, number in sorted(registry.versions.aliases().items())
        if is_candidate(alias) and alias != CANDIDATE
    }
    return tuple(
        OutdatedCandidate(alias.removeprefix(f"{CANDIDATE}-"), version, production)
        for alias, version in candidates.items()
        if version is not None and production.datasets.keys() - version.datasets.keys()
    )
