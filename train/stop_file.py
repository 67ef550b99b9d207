"""`checkpoints/<run>/stop`: whoever can write into the store can make a run save and end, without a signal.

Rank 0 looks for it, on a remote store every ten seconds; the run that has obeyed removes it.
"""

from __future__ import annotations

import time

from tokenmill.errors import StorageError
from tokenmill.train.checkpoints import RunFolder

_NAME = "stop"
_LOCAL_S, _REMOTE_S = 0.2, 10.0


class StopFile:
    """The stop file of a run, as one rank sees it; others than rank 0 never look."""

    def __init__(self, folder: RunFolder, rank: int) -> None:
        self._folder, self._looks = folder, rank == 0
        self._every_s = _LOCAL_S if folder.store.is_local else _REMOTE_S
        self._looked_s = -self._every_s - 1.0
        self._found = False

    def __bool__(self) -> bool:
        """Whether it was there when last looked for."""
        if self._looks and not self._found and time.monotonic() - self._looked_s > self._every_s:
            self._looked_s = time.monotonic()
            self._found = self._is_there()
        return self._found

    def obeyed(self) -> None:
        """Remove the file once the run has saved and ends."""
        if self._looks and self._folder.store.exists(self._folder.at(_NAME)):
            self._folder.store.delete(self._folder.at(_NAME))

    def _is_there(self) -> bool:
        try:
            return self._folder.store.exists(self._folder.at(_NAME))
        except StorageError:  # a store that is away for a moment is no reason to end
            return False
