"""What a step of a tokenizer's training sees: crops of pictures, or 4-frame windows of clips.

Which samples, crops and turns a step has is a pure function of (list, settings, seed, step): every crop is drawn by a
generator of its own, of seed, step and its number, so ranks share a step by numbers and a resumed run sees what an
uninterrupted one would have. What cannot be read is counted and drawn again by the same generator.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tokenmill.errors import RunError, SampleError
from tokenmill.settings_tokenizer import TokenizerBatches
from tokenmill.tokenize.vision_frames import WINDOW
from tokenmill.train.vision_samples import Pixels, Samples

_MOST_DRAWS = 2000
"""Draws for one crop, most of them of pictures that are known to be too small, before a run gives up."""


@dataclass(frozen=True, slots=True)
class StepKind:
    """What all crops of a step have in common; `crops` is their number over all ranks."""

    crops: int
    side: int
    frames: int


@dataclass(frozen=True, slots=True)
class Fault:
    """A sample that could not be read."""

    source: str
    key: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class StepData:
    """A rank's share of a step: (B, T, C, H, W) in -1..1; T is 1, or 4 in a step of windows."""

    step: int
    pixels_BTCHW: torch.Tensor  # noqa: N815
    faults: tuple[Fault, ...]


def kind_of_step(settings: TokenizerBatches, *, pictures: bool, clips: bool, seed: int, step: int) -> StepKind:
    """Choose a step's kind; without clips there are no windows, without pictures nothing else.

    Trained on small crops alone, a network mistakes the colours of whole pictures: its norms and attention span them
    (measured: 20.7 dB for a photograph as a whole, 26.7 dB for the same cut into 64-pixel tiles).
    """
    place = np.random.default_rng([seed, step]).random()
    if clips and (place < settings.windows or not pictures):
        return StepKind(settings.pictures // WINDOW, settings.side, WINDOW)
    place -= settings.windows
    for times, share in sorted(settings.larger.items(), reverse=True):
        if 0 <= place < share:
            return StepKind(settings.pictures // times**2, settings.side * times, 1)
        place -= share
    return StepKind(settings.pictures, settings.side, 1)


class Batches:
    """Makes steps: which crops, of what, and their pixels; `rank` of `ranks` makes its share alone."""

    def __init__(
        self, samples: Samples, settings: TokenizerBatches, *, seed: int, rank: int = 0, ranks: int = 1,
        shares: Mapping[str, float] | None = None, failure_budget: int = 100,
    ) -> None:  # fmt: skip
        self._samples, self._settings, self._seed = samples, settings, seed
        self._rank, self._ranks, self._failure_budget = rank, ranks, failure_budget
        self._pools = {clips: _Pool.of(samples, shares or {}, clips=clips) for clips in (False, True)}

    def kind(self, step: int) -> StepKind:
        """Return a step's kind."""
        pictures, clips = (not self._pools[kind].is_empty for kind in (False, True))
        return kind_of_step(self._settings, pictures=pictures, clips=clips, seed=self._seed, step=step)

    def slots(self, step: int) -> range:
        """Return the numbers of this rank's crops."""
        share, rest = divmod(self.kind(step).crops, self._ranks)
        if rest:
            raise RunError(f"tokenizer.batches: {self.kind(step).crops} crops cannot be shared by {self._ranks} ranks")
        return range(self._rank * share, (self._rank + 1) * share)

    def crop(self, step: int, slot: int) -> tuple[Pixels, list[Fault]]:
        """Return one crop (T, H, W, C), and what could not be read on the way.

        Raises:
            RunError: more than `failure_budget` samples failed in a row, or nothing is large enough.
        """
        kind = self.kind(step)
        faults: list[Fault] = []
        pool = self._pools[kind.frames > 1]
        rng = np.random.default_rng([self._seed, step, slot])
        for _ in range(_MOST_DRAWS):
            row = pool.draw(rng)
            try:
                return self._turned(self._samples.crop(row, kind.side, kind.frames, rng), rng), faults
            except SampleError as error:
                if error.reason == "too_small":
                    continue
                faults.append(Fault(*self._samples.name(row), error.reason, error.message))
            if len(faults) > self._failure_budget:
                last = faults[-1]
                raise RunError(
                    f"tokenizer: {len(faults)} samples in a row could not be read, the last {last.source}/{last.key}: "
                    f"{last.reason}: {last.message}"
                )
        raise RunError(
            f"tokenizer.batches: of {_MOST_DRAWS} samples drawn for a crop of {kind.side} pixels hardly one is so "
            "large; take a smaller side, or none of `larger`"
        )

    def assembled(self, step: int, crops: Sequence[tuple[Pixels, list[Fault]]]) -> StepData:
        """Put a rank's crops together."""
        faults = tuple(fault for _, found in crops for fault in found)
        return StepData(step, as_pixels([pixels for pixels, _ in crops]), faults)

    def __call__(self, step: int) -> StepData:
        """Make a step here and now."""
        return self.assembled(step, [self.crop(step, slot) for slot in self.slots(step)])

    def _turned(self, crop: Pixels, rng: np.random.Generator) -> Pixels:
        """Mirror, turn upside down or transpose, and shift the colours of some."""
        if rng.random() < 0.5:
            crop = crop[..., ::-1, :]
        if rng.random() < 0.15:
            crop = crop[..., ::-1, :, :]
        if rng.random() < 0.15:
            crop = crop.swapaxes(-3, -2)
        if rng.random() < self._settings.recolour:
            gain, offset = rng.uniform(0.7, 1.3) * rng.uniform(0.85, 1.15, 3), rng.uniform(-25, 25)
            crop = np.clip((crop - 128.0) * gain + 128.0 + offset, 0, 255).astype(np.uint8)
        return crop


def steps_ahead(batches: Batches, first: int, end: int, *, threads: int, ahead: int = 2) -> Generator[StepData]:
    """Yield steps in order, made in threads; at most `ahead` steps lie ready or under way."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="crops")
    waiting: dict[int, list[Future[tuple[Pixels, list[Fault]]]]] = {}
    try:
        for step in range(first, end):
            for later in range(step, min(step + ahead, end)):
                if later not in waiting:
                    waiting[later] = [pool.submit(batches.crop, later, slot) for slot in batches.slots(later)]
            yield batches.assembled(step, [future.result() for future in waiting.pop(step)])
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def as_pixels(pictures_THWC: Sequence[Pixels]) -> torch.Tensor:
    """Stack equal uint8 pictures into (B, T, C, H, W) floats in -1..1."""
    stacked = torch.from_numpy(np.stack(pictures_THWC)).permute(0, 1, 4, 2, 3)
    return stacked.float().div_(127.5).sub_(1.0).contiguous()


@dataclass(frozen=True, slots=True)
class _Pool:
    """The rows of pictures, or of clips, by source, and how likely each source is."""

    rows: tuple[Any, ...]
    edges: tuple[float, ...]

    @staticmethod
    def of(samples: Samples, shares: Mapping[str, float], *, clips: bool) -> _Pool:
        by_source = samples.training_rows(clips=clips)
        weights = np.array([shares.get(name, float(len(rows))) for name, rows in by_source.items()])
        edges = np.cumsum(weights) / weights.sum() if len(weights) else weights
        return _Pool(tuple(by_source.values()), tuple(edges.tolist()))

    @property
    def is_empty(self) -> bool:
        return not self.rows

    def draw(self, rng: np.random.Generator) -> int:
        """Draw a row of the list."""
        source = int(np.searchsorted(self.edges, rng.random(), side="right"))
        rows = self.rows[min(source, len(self.rows) - 1)]
        return int(rows[rng.integers(len(rows))])
