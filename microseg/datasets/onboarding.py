"""State of the onboarding of a lab's incoming dataset, and what follows from a fault.

Everything that decides here is a pure function of the state and the time. No time decides an order; a clock that was
set back makes a wait shorter, never longer.
"""

import json
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from microseg.datasets.incoming import IncomingDataset
from microseg.datasets.lab import check_lab_name
from microseg.errors import MicrosegError, is_transient
from microseg.files import write_text_file
from microseg.locks import try_lock
from microseg.parsing import parse_json

__all__ = [
    "MAX_CRASHES",
    "Onboarding",
    "OnboardingState",
    "OnboardingStore",
    "after_error",
    "after_interruption",
    "after_lost_run",
    "is_due",
    "new_onboarding",
    "requested_again",
    "retry_delay",
]

_log = logging.getLogger(__name__)

OnboardingState = Literal[
    "incomplete",
    "pending",
    "running",
    "retrying",
    "awaiting_approval",
    "awaiting_production",
    "already_suited",
    "completed",
    "failed",
]
"""``incomplete``: files are missing. ``pending``: no run has started. ``running``: a run is in progress, or was killed.
``retrying``: a run ended by a fault that passes, and another one will start. ``awaiting_approval``: a person has to
decide on the candidate. ``awaiting_production``: there is no production model to adapt yet. ``already_suited``: the
production model suits the lab, and was not adapted."""

MAX_CRASHES = 10
"""Runs in a row that may die, or end by an unexpected error, before the onboarding has failed."""

_START_TIMEOUT = timedelta(minutes=15)  # an event that started no run within this time was lost
_LOST_EVENT = timedelta(minutes=2)  # the same where it is known that no run is waiting
_FIRST_DELAY, _LONGEST_DELAY = timedelta(minutes=1), timedelta(hours=1)


@dataclass(frozen=True)
class Onboarding:
    """State of the onboarding of a lab's latest incoming dataset.

    Attributes:
        lab: Name of the lab.
        folder: Folder of the incoming dataset.
        fingerprint: Fingerprint of the incoming dataset.
        state: See `OnboardingState`.
        updated_at: Time of the last change, UTC, ISO 8601.
        attempts: Number of runs started.
        failures: Runs in a row that ended by a fault, or without a word.
        crashes: Those of them that died or ended by an unexpected error.
        candidate: Model version that was adapted; None while there is none.
        digest: Version of the lab's dataset; None before it is ingested.
        message: Explanation for people.
        flow_run_id: Prefect's id of the latest run.
        earlier: Fingerprints of datasets of the lab that arrived before in other folders, by folder.
    """

    lab: str
    folder: str
    fingerprint: str
    state: OnboardingState
    updated_at: str = ""
    attempts: int = 0
    failures: int = 0
    crashes: int = 0
    candidate: int | None = None
    digest: str | None = None
    message: str = ""
    flow_run_id: str | None = None
    earlier: Mapping[str, str] = field(default_factory=dict)

    @property
    def in_progress(self) -> bool:
        """Whether a run works on it, or will."""
        return self.state in ("pending", "running", "retrying")

    def knows(self, incoming: IncomingDataset) -> bool:
        """Whether this is the onboarding of a dataset, or one that followed it."""
        return incoming.fingerprint in (self.fingerprint, self.earlier.get(str(incoming.folder)))

    def following(self, incoming: IncomingDataset) -> "Onboarding":
        """The onboarding of the lab's next dataset."""
        earlier = dict(self.earlier)
        if self.folder != str(incoming.folder) and self.state != "incomplete":
            earlier[self.folder] = self.fingerprint
        earlier.pop(str(incoming.folder), None)
        return Onboarding(self.lab, str(incoming.folder), incoming.fingerprint, "pending", earlier=earlier)


def new_onboarding(incoming: IncomingDataset) -> Onboarding:
    """The onboarding of a lab's first dataset."""
    return Onboarding(incoming.lab, str(incoming.folder), incoming.fingerprint, "pending")


def retry_delay(failures: int) -> timedelta:
    """Time between the end of a run and the next one: 1, 2, 4 … minutes, at most an hour.

    Args:
        failures: Runs in a row that have failed.
    """
    if failures < 1:
        return timedelta(0)
    return min(_LONGEST_DELAY, _FIRST_DELAY * (1 << min(failures - 1, 10)))


def after_error(onboarding: Onboarding, error: BaseException, *, passes: bool | None = None) -> Onboarding:
    """State after a run ended with an error: retried where the error passes, failed where it stays.

    Args:
        onboarding: State while the run was in progress.
        error: The error.
        passes: Whether it passes, where the caller knows.
    """
    passes = is_transient(error) if passes is None else passes
    text = str(error) if isinstance(error, MicrosegError) else f"{type(error).__name__}: {error}"
    if not passes and not isinstance(error, MicrosegError) and onboarding.crashes < MAX_CRASHES:
        return _retried(onboarding, f"Unexpected error: {text}")
    if not passes:
        return replace(onboarding, state="failed", failures=0, crashes=0, message=text)
    return _retried(replace(onboarding, crashes=0), text)


def after_interruption(onboarding: Onboarding) -> Onboarding:
    """State after a run was stopped on purpose, such as by the end of the service: it starts again, with no delay."""
    return replace(
        onboarding,
        state="retrying",
        failures=max(0, onboarding.failures - 1),
        crashes=max(0, onboarding.crashes - 1),
        message="The run was stopped; it starts again.",
    )


def after_lost_run(onboarding: Onboarding) -> Onboarding:
    """State when a run has died without a word: it starts again, up to `MAX_CRASHES` times in a row."""
    if onboarding.crashes < MAX_CRASHES:
        return replace(onboarding, state="pending", message="The last run died; another one was started.")
    text = (
        f"{onboarding.crashes} runs in a row died, the last one was {onboarding.flow_run_id}. See their log for the "
        f"reason, such as too little memory; then: microseg onboard {onboarding.folder}"
    )
    return replace(onboarding, state="failed", failures=0, crashes=0, message=text)


def requested_again(onboarding: Onboarding) -> Onboarding:
    """State when another run is requested; where the last request had no result on record, after a longer delay."""
    if onboarding.state != "pending":
        return replace(onboarding, state="pending")
    text = "The requested run has not recorded that it began; another one was requested. See the runs in Prefect."
    return replace(onboarding, failures=onboarding.failures + 1, message=text)


def _retried(onboarding: Onboarding, text: str) -> Onboarding:
    minutes = round(retry_delay(onboarding.failures).total_seconds() / 60)
    return replace(onboarding, state="retrying", message=f"{text.rstrip('.')}. It is tried again in {minutes} minutes.")


def is_due(onboarding: Onboarding, now: datetime, *, production: bool, waiting: bool | None = None) -> bool:
    """Whether another run should start, provided that none is in progress.

    Args:
        onboarding: The state.
        now: The time.
        production: Whether there is a production model.
        waiting: Whether a requested run is waiting for its start; None where this is not known.
    """
    passed = now - datetime.fromisoformat(onboarding.updated_at)
    waits = passed >= timedelta(0)  # not after a clock was set back
    if onboarding.state == "pending":  # its event has started no run, or one that could not even record its start
        least = _START_TIMEOUT if waiting is None else _LOST_EVENT
        return not waiting and (passed > max(least, retry_delay(onboarding.failures)) or not waits)
    if onboarding.state in ("running", "retrying"):
        return passed >= retry_delay(onboarding.failures - (onboarding.state == "running")) or not waits
    return onboarding.state == "awaiting_production" and production


class OnboardingStore:
    """States of the labs' onboardings, one JSON file for each lab.

    Args:
        folder: Folder of the files; created when needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, lab: str) -> Onboarding | None:
        """State of the onboarding of a lab; None where it was never started.

        A file that is damaged is set aside with a warning: its onboarding starts again, and finds what is done.

        Args:
            lab: Name of the lab.

        Raises:
            LabError: The name is invalid.
            OSError: The file cannot be read now.
        """
        path = self._folder / f"{check_lab_name(lab)}.json"
        try:
            stated = parse_json(path.read_bytes(), any_names=True)
            known = {each.name for each in fields(Onboarding)}
            onboarding = Onboarding(**{name: value for name, value in stated.items() if name in known})
            datetime.fromisoformat(onboarding.updated_at)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, AttributeError) as error:
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            _log.warning("%s: expected the state of an onboarding, got %s. It was set aside as %s.", path, error, aside)
            return None
        return onboarding

    def read_all(self) -> list[Onboarding]:
        """States of all labs."""
        found = (self.read(path.stem) for path in sorted(self._folder.glob("*.json")))
        return [onboarding for onboarding in found if onboarding is not None]

    def write(self, onboarding: Onboarding, **changes: Any) -> Onboarding:
        """Write the state of an onboarding.

        Args:
            onboarding: The state.
            changes: Attributes to change before.

        Returns:
            The state that was written.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        onboarding = replace(onboarding, **{"updated_at": now, **changes})
        path = self._folder / f"{check_lab_name(onboarding.lab)}.json"
        write_text_file(path, json.dumps(asdict(onboarding), indent=2) + "\n")
        return onboarding

    def lock(self, lab: str, *, wait: bool) -> AbstractContextManager[bool]:
        """Lock the onboarding of a lab for this process; a process that dies releases it.

        Args:
            lab: Name of the lab.
            wait: Wait until the lock is free.

        Returns:
            A context manager that yields whether it is locked; see `microseg.locks.try_lock`.
        """
        return try_lock(self._folder / f".{check_lab_name(lab)}.lock", wait=wait)
