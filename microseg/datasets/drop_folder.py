"""A drop folder, in which incoming datasets arrive: which of them have not changed for a quiet period.

Files arrive slowly, over a network share, in any order. So an incoming dataset is complete when it has metadata and
images, and every file that ``images.csv`` names, and nothing in it has changed for a quiet period, by the clock of the
observer: the times that a share gives its files may be of another clock.
"""

import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from microseg.datasets.incoming import IncomingDataset, read_incoming_folder, refused_links
from microseg.errors import MicrosegError
from microseg.files import is_below
from microseg.slides.folder import is_system_file

__all__ = ["DropFolder"]

_log = logging.getLogger(__name__)

_UNFINISHED_FACTOR = 10  # of quiet periods after which a temporary file is reported as left over
_SCAN_RATIO = 20  # of the pause between two scans of an unchanged folder to the time that a scan takes
_AGE_RATIO = 0.1  # of that pause to the time for which the folder has not changed
_LONGEST_PAUSE = 3600.0  # seconds


@dataclass
class _Seen:
    """What is known of a folder from earlier polls, in seconds of the poll's clock."""

    incoming: IncomingDataset | None
    since: float
    next_scan: float
    error: str = ""


class DropFolder:
    """A folder that is polled for incoming datasets.

    A folder that has not changed for long is read rarely: new files and folders, and changes of ``lab.yaml`` and
    ``images.csv``, are noticed at once by the modification times of its folders; a file that is written again in place
    within an hour. What goes wrong with one folder does not concern the others.

    Args:
        path: The folder; it has one folder for each lab.
        quiet_period: Seconds for which nothing in an incoming dataset may change.
        roots: Folders that links in incoming datasets may lead to.
        labs: Folder of all labs' datasets.
    """

    def __init__(
        self, path: Path, quiet_period: float, *, roots: Iterable[Path] = (), labs: Path | None = None
    ) -> None:
        self.path = path
        self.quiet_period = quiet_period
        self._roots, self._labs = tuple(roots), labs
        self._seen: dict[Path, _Seen] = {}

    def poll(self, now: float) -> list[IncomingDataset]:
        """Read all incoming datasets that may have changed.

        Args:
            now: Seconds of a monotonic clock.

        Returns:
            Those that have not changed for the quiet period, complete or not.

        Raises:
            OSError: The drop folder itself cannot be read now.
        """
        with os.scandir(self.path) as entries:
            found = [entry for entry in entries if not is_system_file(entry.name)]
        folders = sorted(Path(entry.path) for entry in found if entry.is_dir())
        self._seen = {folder: seen for folder, seen in self._seen.items() if folder in folders}
        quiet = []
        for folder in folders:
            seen = self._seen.setdefault(folder, _Seen(None, now, now))
            try:
                incoming = self._poll(folder, seen, now)
            except Exception as error:  # each folder on its own: it is tried again at the next poll
                self._report(folder, seen, error)
            else:
                seen.error = ""
                if incoming is not None:
                    quiet.append(incoming)
        return quiet

    def _poll(self, folder: Path, seen: _Seen, now: float) -> IncomingDataset | None:
        before = seen.incoming
        if before and self._is_quiet(before, now - seen.since) and now < seen.next_scan and before.is_unchanged():
            return before
        start = time.perf_counter()
        if folder.is_symlink() and not is_below(folder, (self.path, *self._roots)):
            incoming = IncomingDataset(folder.absolute(), None, "", 0, 0, refused_links(folder.parent, [folder]))
        else:
            incoming = read_incoming_folder(folder, before, roots=(self.path, *self._roots), labs=self._labs)
        took = time.perf_counter() - start
        if before is None or before.fingerprint != incoming.fingerprint:
            seen.since = now
        age = now - seen.since
        seen.incoming = incoming
        seen.next_scan = now + min(_LONGEST_PAUSE, max(_SCAN_RATIO * took, _AGE_RATIO * age))
        return incoming if before and self._is_quiet(incoming, age) else None

    def _is_quiet(self, incoming: IncomingDataset, age: float) -> bool:
        """Whether nothing has changed for long enough; a file that is being written is waited for longer."""
        return age >= self.quiet_period * (_UNFINISHED_FACTOR if incoming.unfinished else 1)

    def _report(self, folder: Path, seen: _Seen, error: Exception) -> None:
        """Log what is wrong with a folder, once."""
        text = str(error) if isinstance(error, MicrosegError) else f"{type(error).__name__}: {error}"
        if seen.error != text:
            seen.error = text
            _log.warning("%s cannot be read; it is tried again: %s", folder, text)
