"""How much fits onto a device, learned from what did not."""

from __future__ import annotations

_PLENTY = 1 << 20


class Room:
    """How many rows the device has memory for: half of what it had none for, and twice as many after a while.

    One huge picture must not make all that come after it wait in batches of one.
    """

    def __init__(self, patience: int = 20) -> None:
        self.rows = _PLENTY
        self._patience, self._full = patience, 0

    def was_short(self, rows: int) -> None:
        """Take note of a batch that did not fit."""
        self.rows, self._full = max(1, rows // 2), 0

    def was_enough(self, rows: int) -> None:
        """Take note of a batch that fitted; only full ones say something."""
        self._full += rows >= self.rows
        if self._full >= self._patience:
            self.rows, self._full = min(_PLENTY, self.rows * 2), 0
