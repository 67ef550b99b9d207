"""The files in which a run's rows gather, for whoever trains what: metrics, TensorBoard, and rows of one's own.

On a remote store the files grow in a scratch folder and are published with every checkpoint, since objects cannot be
appended to.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.metrics import SHOWN, Board
from tokenmill.train.rows import RowFile
from tokenmill.train.trackers import TRACKIO_FOLDER, TrackerThread

_METRICS = "metrics.jsonl"


class RunFiles:
    """The files of one launch of a run that goes on from step `done`; on the rank that writes.

    Args:
        names: files of rows beside the metrics; progress: gets this launch's metrics alone.
        shown: which figures TensorBoard gets.
        open_trackers: starts others that get the metrics, given a local folder for what they keep.
    """

    def __init__(
        self,
        folder: RunFolder,
        done: int,
        progress: Path | None,
        names: Sequence[str],
        *,
        tensorboard: bool,
        shown: Sequence[str] = SHOWN,
        open_trackers: Callable[[Path], Sequence[TrackerThread]] = lambda _: (),
    ) -> None:
        self._folder, self._first, self._started = folder, done, time.monotonic()
        local = folder.store.local_path(folder.at("").rstrip("/"))
        self._scratch = None if local else _fetched(folder, (_METRICS, *names))
        self._here = local or self._scratch or Path()
        self._rows = {name: RowFile(self._here / name, done) for name in (_METRICS, *names)}
        self._progress = RowFile(progress, 0) if progress else None
        self._open_board = partial(Board, self._here / "tensorboard", enabled=tensorboard, shown=shown)
        self._board = self._open_board(done)
        self._trackers = open_trackers(self._here)

    def add_metrics(self, row: Mapping[str, Any], total_steps: int) -> None:
        """Write a step's row, with the seconds that are left at this launch's pace."""
        per_step_s = (time.monotonic() - self._started) / (row["step"] - self._first)
        row = {**row, "eta_s": per_step_s * (total_steps - row["step"])}
        for file in (self._rows[_METRICS], self._progress, self._board):
            if file is not None:
                file.add(row)
        for tracker in self._trackers:
            tracker.add(row)

    def add(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows into the file of that name."""
        for row in rows:
            self._rows[name].add(row)

    def show(self, row: Mapping[str, Any], group: str) -> None:
        """Give a row to TensorBoard and the trackers, as a group of its own."""
        self._board.add(row, group)
        for tracker in self._trackers:
            tracker.add(row, group)

    def go_back(self, done: int) -> None:
        """Cut everything but the progress back to a step from which the run goes on anew."""
        self._first, self._started = done, time.monotonic()
        for name, file in self._rows.items():
            file.close()
            self._rows[name] = RowFile(self._here / name, done)
        self._board.close()
        self._board = self._open_board(done)

    def publish(self) -> None:
        """Put the files where they belong, if that is elsewhere."""
        if self._scratch is not None:
            self._board.flush()
            for path in sorted(path for path in self._scratch.rglob("*") if path.is_file()):
                with suppress(FileNotFoundError):  # trackers move files of theirs meanwhile
                    self._folder.store.put(self._folder.at(str(path.relative_to(self._scratch))), path.read_bytes())

    def close(self) -> None:
        for file in (*self._rows.values(), self._progress, self._board, *self._trackers):
            if file is not None:
                file.close()
        self.publish()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)


def _fetched(folder: RunFolder, names: Sequence[str]) -> Path:
    """Give a scratch folder with the rows that are there already, and trackio's database."""
    scratch = Path(mkdtemp(prefix="tokenmill-run-"))
    there = [name for name in names if folder.store.exists(folder.at(name))]
    there += [entry.path.removeprefix(folder.at("")) for entry in folder.store.files(folder.at(TRACKIO_FOLDER))]
    for name in there:
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch / name).write_bytes(folder.store.read_bytes(folder.at(name)))
    return scratch
