"""Originals for the report: fetched through the sources, shrunk, and put into the page as data.

A page of pictures grows fast, so all of them share one budget (3.2 MB of data, 4 MB of page); when it is spent, what
comes later is told in words. Small pictures stay PNG and sharp, larger ones become JPEG of 176 pixels, 5 KB each.
"""

from __future__ import annotations

import logging
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from tokenmill.errors import RunError, SampleError, StorageError
from tokenmill.generate.write_video import mp4
from tokenmill.pipelines.decoding import SampleReader
from tokenmill.pipelines.report_data import SourceTable
from tokenmill.pipelines.report_html import Child, Markup, element
from tokenmill.pipelines.sources.raw_document import RawDocument, RawText
from tokenmill.pipelines.tokens_clip import check_times, frames_on_show, sized_frames

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
_SMALL_PX = 96
_BUDGET = 3_200_000
_FILM_PX = 400  # two clips side by side


@dataclass
class Album:
    """Turns pixels into `<img>` elements, as long as the budget lasts."""

    budget: int = _BUDGET
    spent: int = 0
    refused: int = 0

    def picture(self, pixels: Pixels, alt: str, *, side: int = 176) -> Markup:
        """Return an image, or a box with its description when the budget is spent."""
        kind, data = encoded(pixels, side)
        source = self._source(f"image/{kind}", data)
        if source is None:
            return element("div", alt, class_="blank")
        sharp = "sharp" if max(pixels.shape[:2]) <= _SMALL_PX else None
        height, width = pixels.shape[:2]
        return element("img", src=source, alt=alt[:300], class_=sharp, width=width, height=height, loading="lazy")

    def video(self, frames: Pixels, fps: float, alt: str) -> Markup:
        """Return a player of frames (THWC), or a box with its description when the budget is spent."""
        return self.film(mp4(frames, fps, longer_side_px=_FILM_PX), frames.shape[2], frames.shape[1], alt)

    def film(self, data: bytes, width: int, height: int, alt: str) -> Markup:
        """Return a player of an mp4, or a box with its description when the budget is spent."""
        source = self._source("video/mp4", data)
        if source is None:
            return element("div", alt, class_="blank")
        return element("video", src=source, aria_label=alt[:300], width=width, height=height, controls="controls",
                       loop="loop", muted="muted", playsinline="playsinline", preload="auto")  # fmt: skip

    def _source(self, kind: str, data: bytes) -> str | None:
        """Return the address that holds data itself, unless the budget is spent."""
        if self.spent + len(data) * 4 // 3 > self.budget:
            self.refused += 1
            return None
        self.spent += len(data) * 4 // 3
        return f"data:{kind};base64,{b64encode(data).decode()}"


def encoded(pixels: Pixels, side: int) -> tuple[str, bytes]:
    """Return (`png` or `jpeg`, bytes) of a picture whose longer side is at most `side` pixels."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    if max(pixels.shape[:2]) <= _SMALL_PX:
        image.save(buffer, "PNG", optimize=True)
        return "png", buffer.getvalue()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return "jpeg", buffer.getvalue()


def tile(picture: Child, *lines: Child, badge: str | None = None, double: bool = False, strip: bool = False) -> Markup:
    """Return a picture (or two side by side, or a strip of a clip's frames) with lines of text below it."""
    mark = element("span", badge, class_="badge") if badge else None
    told = element("figcaption", *(element("span", line) for line in lines if line))
    kind = " double" if double else " strip" if strip else ""
    return element("figure", element("div", picture, mark, class_="frame"), told, class_=f"tile{kind}")


@dataclass
class Originals:
    """Fetches samples of any source; a source that can't be reached gives none, and says so once."""

    chain: Any
    unreachable: dict[str, str] = field(default_factory=dict)
    _readers: dict[str, SampleReader] = field(default_factory=dict)

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()

    def pictures(self, table: SourceTable, rows: pl.DataFrame) -> dict[str, Pixels]:
        """Return the pictures of some rows by key, HWC, of a clip three frames, THWC; broken ones are absent."""
        if table.modality in ("text", "document"):
            return {}
        return {key: found for key, found in self._read(table, rows).items() if isinstance(found, np.ndarray)}

    def texts(self, table: SourceTable, rows: pl.DataFrame) -> dict[str, str]:
        """Return the texts of some rows by key; of documents as they are read, pictures by their numbers."""
        return {key: found for key, found in self._read(table, rows).items() if isinstance(found, str)}

    def clip(self, table: SourceTable, row: Mapping[str, Any], fps: float, decoded: Pixels) -> Pixels | None:
        """Return the frames (THWC) of which a clip's first decoded ones were made, or None where they can't be had."""
        reader = self._reader(table.source)
        number, height, width, _ = decoded.shape
        try:
            with reader.source.store.local_copy(row["path"]) as path, reader.decoders.taken(path) as decoder:
                times = decoder.times(path)
                check_times(times, row)
                numbers = frames_on_show(times, row["start_frame"], row["end_frame"], fps)[:number]
                return sized_frames(decoder, path, numbers, (height, width)) if len(numbers) == number else None
        except (SampleError, StorageError, RunError, OSError) as error:
            log.warning("%s: %s", table.source, error)
            return None

    def _read(self, table: SourceTable, rows: pl.DataFrame) -> dict[str, Any]:
        found: dict[str, Any] = {}
        try:
            for group in rows.partition_by("unit", maintain_order=True):
                ordered = group.sort("path", "offset" if "offset" in group.columns else "start_frame")
                found.update(zip(ordered["key"], self._samples(table, ordered), strict=True))
        except (StorageError, RunError) as error:
            log.warning("%s: %s", table.source, error)
            self.unreachable[table.source] = str(error)
        return found

    def _samples(self, table: SourceTable, rows: pl.DataFrame) -> list[Any]:
        reader, piece = self._reader(table.source), table.pieces[rows["unit"][0]]
        if table.modality == "text":
            return list(reader.texts(piece, rows))
        if table.modality == "document":
            return [_read_aloud(one) for one in reader.documents(piece, rows)]
        if table.modality == "video":
            return list(reader.clips(rows, reader.glimpses))
        return list(reader.images(piece, rows))

    def _reader(self, source: str) -> SampleReader:
        if source not in self._readers:
            settings = self.chain.recipe.sources[source].model_dump()
            self._readers[source] = SampleReader(source, settings, self.chain.limits)
        return self._readers[source]


def _read_aloud(document: RawDocument | SampleError) -> str | SampleError:
    """Return a document as one text: who says what, and where pictures are shown."""
    if isinstance(document, SampleError):
        return document
    return "\n".join(
        (part.text if part.role == "body" else f"{part.role}: {part.text}")
        if isinstance(part, RawText)
        else f"[picture {part.number}]"
        for part in document.parts
    )
