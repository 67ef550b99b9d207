"""How much of pictures and clips a vision tokenizer keeps, at several sizes, beside what Emu3's paper says of its own.

Every picture is resized to each area (its shape kept, sides as the tokenizer wants them), encoded, decoded and compared
with what was encoded. None is enlarged: pictures of fewer pixels are left out at that size and counted, because an
enlarged picture has no detail to lose and would flatter. Clips go through whole, every frame, some windows at a time.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RunError, SampleError
from tokenmill.generate.reconstruction_tally import Measures, Sample, Tally
from tokenmill.pipelines.tokenizer_data import Kind, Original
from tokenmill.tokenize.picture_quality import WINDOW_PX
from tokenmill.tokenize.preprocess import resize, target_size
from tokenmill.tokenize.vision import VisionTokenizer

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

PAPER: Mapping[int, tuple[float, float, float]] = {
    128: (0.099, 21.71, 0.630),
    256: (0.109, 21.59, 0.622),
    512: (0.112, 22.69, 0.690),
    720: (0.110, 24.30, 0.771),
}
"""LPIPS, PSNR in dB and SSIM of Emu3's tokenizer on 3,172 Pexels videos, by side (Emu3, table 2)."""

_PIXELS_AT_ONCE = 4_000_000  # that go through the tokenizer: 15 pictures of 512 x 512, 3 windows of four such frames
_MAX_ASPECT = 5.0
_LINE_EVERY_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is measured, of how many pictures and of how many clips at most."""

    sides_px: tuple[int, ...]
    limit: int | None = None
    measures: Measures = field(default_factory=Measures)


class Evaluation:
    """Measures one tokenizer; `rows` may be read at any time."""

    def __init__(self, vision: VisionTokenizer, asked: Asked) -> None:
        self._vision, self._asked = vision, asked
        self._tallies: dict[tuple[Kind, int], Tally] = {}
        self._waiting: dict[tuple[int, ...], list[Pixels]] = defaultdict(list)
        self.taken: Counter[str] = Counter()
        self.failed: dict[str, Counter[str]] = defaultdict(Counter)

    def run(self, data: Iterator[Original]) -> None:
        """Measure on everything there is, or the first so many; raises RunError where nothing could be measured."""
        told = time.monotonic()
        for original in data:
            if self._asked.limit is not None and self.taken[original.kind] >= self._asked.limit:
                if all(self.taken[kind] >= self._asked.limit for kind in ("image", "video")):
                    break
                continue
            self.taken[original.kind] += 1
            try:
                (self._picture if original.kind == "image" else self._clip)(original)
            except SampleError as error:
                self.failed[original.kind][error.reason] += 1
                log.debug("%s: %s", original.name, error)
            if time.monotonic() - told > _LINE_EVERY_S:
                told = time.monotonic()
                log.info("evaluate: %s", ", ".join(f"{number} {kind}s" for kind, number in self.taken.items()))
        for waiting in list(self._waiting):
            self._flush(waiting)
        if not any(tally.frames for tally in self._tallies.values()):
            raise RunError(f"nothing could be measured: {self._why()}")

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a kind and size."""
        return [{"kind": kind, "side_px": side, **tally.row()} for (kind, side), tally in sorted(self._tallies.items())]

    def _why(self) -> str:
        reasons: Counter[str] = Counter()
        for counted in (*self.failed.values(), *(tally.left_out for tally in self._tallies.values())):
            reasons.update(counted)
        return ", ".join(f"{reason} {number}" for reason, number in sorted(reasons.items())) or "there is nothing"

    def _tally(self, kind: Kind, side_px: int) -> Tally:
        if (kind, side_px) not in self._tallies:
            self._tallies[kind, side_px] = Tally(self._vision.codebook_size, self._asked.measures)
        return self._tallies[kind, side_px]

    def _sizes(self, kind: Kind, height: int, width: int) -> dict[int, tuple[int, int]]:
        """Return what a picture is resized to, by side; counts the sizes at which it is left out."""
        found = {}
        for side_px in self._asked.sides_px:
            try:
                found[side_px] = fitting(height, width, side_px, self._vision.spatial_factor)
            except SampleError as error:
                self._tally(kind, side_px).left_out[error.reason] += 1
        return found

    def _picture(self, original: Original) -> None:
        (picture,) = (batch[0] for batch in original.batches)
        for side_px, size in self._sizes("image", *picture.shape[:2]).items():
            place = (side_px, *size)
            self._waiting[place].append(resize(picture, size))
            if len(self._waiting[place]) * size[0] * size[1] >= _PIXELS_AT_ONCE // len(self._asked.sides_px):
                self._flush(place)
            elif sum(len(pictures) for pictures in self._waiting.values()) > 4 * self._vision.batch_size:
                self._flush(max(self._waiting, key=lambda one: len(self._waiting[one])))

    def _flush(self, place: tuple[int, ...]) -> None:
        """Measure the pictures of one size that have been waiting."""
        tally, pictures_BHWC = self._tally("image", place[0]), np.stack(self._waiting.pop(place))
        codes_Bhw = self._vision.encode_images(pictures_BHWC)
        decoded_BHWC = self._vision.decode_images(codes_Bhw)
        for number in range(len(pictures_BHWC)):
            sample, here = Sample(), slice(number, number + 1)
            tally.compare(sample, pictures_BHWC[here], decoded_BHWC[here], codes_Bhw[here])
            tally.finish(sample)

    def _clip(self, original: Original) -> None:
        passes: list[_Pass] | None = None
        for batch_THWC in original.batches:
            if passes is None:
                sizes = self._sizes("video", *batch_THWC.shape[1:3])
                passes = [_Pass(self._vision, self._tally("video", side), size) for side, size in sizes.items()]
            for one in passes:
                one.take(batch_THWC)
        if passes is None:
            raise SampleError("no_frames", "no frame came out of it")
        if passes and not any(one.sample.psnr_db for one in passes):
            raise SampleError("too_short", f"fewer than {self._vision.temporal_factor} frames")
        for one in passes:
            one.tally.finish(one.sample)


class _Pass:
    """One clip at one size: frames wait until they fill windows; those left at the end are left out."""

    def __init__(self, vision: VisionTokenizer, tally: Tally, size: tuple[int, int]) -> None:
        self._vision, self.tally, self._size = vision, tally, size
        self._waiting: list[Pixels] = []
        self.sample = Sample()

    def take(self, frames_THWC: Pixels) -> None:
        factor = self._vision.temporal_factor
        most = factor * max(1, _PIXELS_AT_ONCE // (factor * self._size[0] * self._size[1]))
        for frame in frames_THWC:
            self._waiting.append(resize(frame, self._size))
            if len(self._waiting) == most:
                self._measure(most)
        self._measure(len(self._waiting) // factor * factor)

    def _measure(self, number: int) -> None:
        if not number:
            return
        frames, self._waiting = np.stack(self._waiting[:number]), self._waiting[number:]
        codes = self._vision.encode_video(frames[None])
        self.tally.compare(self.sample, frames, self._vision.decode_video(codes)[0], codes)


def fitting(height: int, width: int, side_px: int, multiple: int) -> tuple[int, int]:
    """Return the size of a picture of about side² pixels; raises SampleError, `smaller` for one of fewer pixels."""
    if height * width < side_px * side_px:
        raise SampleError("smaller", f"{height} x {width} pixels are fewer than {side_px}²")
    area = side_px * side_px
    size = target_size(height, width, min_area=area, max_area=area, max_aspect=_MAX_ASPECT, multiple=multiple)
    if min(size) < WINDOW_PX:
        raise SampleError("too_small", f"{size[0]} x {size[1]} pixels: SSIM needs {WINDOW_PX} a side")
    return size


def render(found: Mapping[str, Any]) -> str:
    """Return the table, the paper's rows under the sizes it has, and what was left out."""
    frechet = found["features"] and ("rFID" if found["is_fid"] else f"Fréchet ({found['features']})")
    titles = (
        "",
        "side",
        "samples",
        "frames",
        "PSNR dB",
        "SSIM",
        "LPIPS",
        frechet or "rFID",
        "codes used",
        "perplexity",
    )
    lines = [titles, *(_line(row) for row in found["rows"])]
    lines += [
        ("Emu3", f"{side}²", "3,172", "", f"{psnr:.2f}", f"{ssim:.3f}", f"{lpips:.3f}", "", "", "")
        for side, (lpips, psnr, ssim) in PAPER.items()
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    notes = ["Emu3's rows are its paper's, of 3,172 Pexels videos: another set than this, so a scale and no contest."]
    notes += [
        f"{row['kind']} {row['side_px']}²: left out {_counted(row['left_out'])}"
        for row in found["rows"]
        if row["left_out"]
    ]
    notes += [f"{kind}: failed {_counted(reasons)}" for kind, reasons in found["failed"].items()]
    return "\n".join([*table, *notes])


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    def number(name: str, digits: int) -> str:
        return "" if row[name] is None else f"{row[name]:,.{digits}f}"

    used = f"{row['codes_seen']:,} ({row['codebook_usage']:.0%})"
    return (
        row["kind"], f"{row['side_px']}²", f"{row['samples']:,}", f"{row['frames']:,}", number("psnr_db", 2),
        number("ssim", 3), number("lpips", 3), number("frechet", 2), used, number("perplexity", 0),
    )  # fmt: skip


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {number:,}" for reason, number in reasons.items())
