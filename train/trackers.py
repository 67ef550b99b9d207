"""Metrics for services beside TensorBoard: Weights & Biases and trackio, if the recipe asks for them.

A service that fails, hangs or refuses must not cost a training step, so each has a thread of its own and a queue: what
does not fit is dropped, the first failure is told and ends this tracker alone, and the end of the run waits 30 s for
it at most. A resumed run goes on under its old id; steps it takes a second time are sent a second time.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any, Protocol

from tokenmill.errors import RecipeError
from tokenmill.settings_train import TrainSettings
from tokenmill.settings_watch import TrackioSettings, WandbSettings

log = logging.getLogger(__name__)
TRACKIO_FOLDER = "trackio"
_QUEUE_ROWS = 1000
_CLOSE_S = 30.0
_POLL_S = 0.2


class Tracker(Protocol):
    """Takes rows of metrics as flat figures by name."""

    def add(self, figures: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


Opens = Callable[[], Tracker]


class TrackerThread:
    """Feeds one tracker from a thread of its own; none of its methods raises or blocks for long."""

    def __init__(self, name: str, opens: Opens, *, close_s: float = _CLOSE_S) -> None:
        self.name, self.dropped = name, 0
        self.failure: Exception | None = None
        self._opens, self._close_s = opens, close_s
        self._rows: Queue[tuple[Mapping[str, float], int]] = Queue(_QUEUE_ROWS)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def add(self, row: Mapping[str, Any], group: str = "train") -> None:
        """Hand on a row; its figures are named `group/column`, those inside of it `group/column/name`."""
        if self.failure is not None:
            return
        try:
            self._rows.put_nowait((figures_of(row, group), int(row["step"])))
        except Full:
            self.dropped += 1

    def close(self) -> None:
        """Let the tracker finish, for a while."""
        self._ending.set()
        self._thread.join(self._close_s)
        if self._thread.is_alive():
            log.warning("%s: still not done after %.0f s; the run ends without it", self.name, self._close_s)
        if self.dropped:
            log.warning("%s: too slow, %d rows were not sent; metrics.jsonl has them", self.name, self.dropped)

    def _run(self) -> None:
        try:
            tracker = self._opens()
            while (found := self._next()) is not None:
                tracker.add(*found)
            tracker.close()
        except Exception as error:  # whatever a service does: training goes on
            self.failure = error
            told = " ".join(str(error).split())[:300]
            log.warning("%s: %s: %s; the run goes on without it", self.name, type(error).__name__, told)

    def _next(self) -> tuple[Mapping[str, float], int] | None:
        """Wait for a row; None once the run has ended and all are sent."""
        while True:
            ending = self._ending.is_set()
            try:
                return self._rows.get(timeout=_POLL_S)
            except Empty:
                if ending:
                    return None


def figures_of(row: Mapping[str, Any], group: str) -> dict[str, float]:
    """Flatten a row: numbers by name, mappings of numbers by name below theirs."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= figures_of(value, f"{group}/{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            found[f"{group}/{name}"] = value
    return found


def check_trackers(settings: TrainSettings) -> None:
    """Refuse trackers whose package is not installed, by name; raises RecipeError."""
    for name in ("wandb", "trackio"):
        if getattr(settings, name) is not None and importlib.util.find_spec(name) is None:
            raise RecipeError(f"train.{name}: the package is not installed; pip install 'tokenmill[{name}]'")


def open_trackers(settings: TrainSettings, folder: Path, run_id: str) -> Sequence[TrackerThread]:
    """Start the trackers that a recipe asks for.

    Args:
        folder: local; gets what they keep of their own.
        run_id: the same for every launch of a run.
    """
    config, found = settings.model_dump(mode="json"), []
    if (wandb := settings.wandb) is not None:
        name = wandb.name or settings.run
        found.append(TrackerThread("wandb", lambda: _Wandb(wandb, folder, run_id, name, config)))
    if (trackio := settings.trackio) is not None:
        title = trackio.name or settings.run
        found.append(TrackerThread("trackio", lambda: _Trackio(trackio, folder, title, config)))
    return found


class _Wandb:
    def __init__(
        self, settings: WandbSettings, folder: Path, run_id: str, name: str, config: Mapping[str, Any]
    ) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=settings.group,
            tags=settings.tags or None,
            name=name,
            id=run_id,
            resume="allow",
            mode=settings.mode,
            dir=str(folder),
            config=dict(config),
            settings=wandb.Settings(init_timeout=60, silent=True, x_disable_stats=True),
        )

    def add(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    def __init__(self, settings: TrackioSettings, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(folder / TRACKIO_FOLDER))  # read when it is imported
        import trackio

        self._trackio: Any = trackio
        trackio.init(
            project=settings.project,
            name=name,
            space_id=settings.space,
            config=dict(config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def add(self, figures: Mapping[str, float], step: int) -> None:
        self._trackio.log(dict(figures), step=step)

    def close(self) -> None:
        self._trackio.finish()
