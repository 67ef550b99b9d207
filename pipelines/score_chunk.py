"""What passes between the halves of scoring: a sheet of columns that fills up, and what was seen of each sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from tokenmill.errors import SampleError
from tokenmill.filters.clip import Sampling
from tokenmill.filters.footage import Footage
from tokenmill.filters.pages import Pages
from tokenmill.filters.picture import Picture
from tokenmill.filters.scorer import Scorer, check_columns, is_prepared, views_of
from tokenmill.pipelines.document_bytes import raw_bytes

Seconds = dict[str, float]


def add_seconds(to: Seconds, what: str, seconds: float) -> None:
    """Add to the seconds of a phase."""
    to[what] = to.get(what, 0.0) + seconds


@dataclass(kw_only=True)
class Sheet:
    """The columns of some samples, one list a column, None where a scorer gave nothing; and why it gave nothing.

    Attributes:
        errors: a sample that cannot be read or decoded at all, by its place.
        faults: scorer → place → what failed for this scorer alone (a view that no other looks at).
    """

    keys: list[str]
    errors: list[SampleError | None]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    faults: dict[str, dict[int, SampleError]] = field(default_factory=dict)
    seconds: Seconds = field(default_factory=dict)

    def begin(self, scorer: Scorer) -> None:
        """Add a scorer's columns, all null."""
        for column in scorer.columns:
            self.columns[column] = [None] * len(self.keys)

    def put(self, scorer: Scorer, places: Sequence[int], columns: Mapping[str, Sequence[Any]]) -> None:
        """Fill in what a scorer said of the samples at some places; raises RunError unless it said all and no more."""
        check_columns(scorer, columns, len(places))
        for column, values in columns.items():
            target = self.columns[column]
            for place, value in zip(places, values, strict=True):
                target[place] = value


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some samples on their way to the models.

    `seen` maps a scorer to the samples it may score, by their place in the chunk, and what it takes of them: resized
    pixels, or for a scorer that cannot resize beforehand and hangs on one that does, the whole sample.
    """

    sheet: Sheet
    seen: dict[str, dict[int, Any]]


Part = Sheet  # a chunk after the models: columns alone


@dataclass(kw_only=True)
class Looked:
    """What the scorers that looked at one picture, clip or document made of it: values, or what a model is to see."""

    picture: Picture | Footage | Pages
    values: dict[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)
    small: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, SampleError] = field(default_factory=dict)
    seconds: Seconds = field(default_factory=dict)


class Look:
    """Lets scorers look at a picture, clip or document in the thread that decodes it: views, then `score` or `prepare`.

    Scorers that want batches (`batch_size` above 1, no `prepare`) only have their views decoded here.

    Args:
        release: let go of what is large and can be had again.
        forget: of a clip, let go of all pixels: nobody comes later who needs them, and they cannot be had again.
        gates: scorer → what tells, by the scores so far, whether it is to look.
    """

    def __init__(
        self, scorers: Sequence[Scorer], *, release: bool = True, forget: bool = False,
        gates: Mapping[str, Callable[[Looked], bool]] | None = None,
    ) -> None:  # fmt: skip
        self._scorers = [(s, is_prepared(s), views_of(s)) for s in scorers]
        self._gates = gates or {}
        self._release, self._forget = release, forget

    def __call__(self, picture: Picture | Footage | Pages, decode_s: float = 0.0) -> Looked:
        looked = Looked(picture=picture, seconds={"decode": decode_s})
        for scorer, prepared, views in self._scorers:
            if scorer.name in self._gates and not self._gates[scorer.name](looked):
                continue
            try:
                self._look(scorer, prepared, views, looked)
            except SampleError as error:
                looked.faults[scorer.name] = error
        if self._forget and isinstance(picture, Footage):
            picture.forget()
        elif self._release:
            picture.release()
        return looked

    def _look(self, scorer: Scorer, prepared: bool, views: Sequence[Any], looked: Looked) -> None:
        mark = time.perf_counter()
        if isinstance(looked.picture, Picture):  # a clip is decoded, a document's pictures when their turn comes
            for view in views:
                looked.picture.view(view)
        decoded = time.perf_counter()
        add_seconds(looked.seconds, "decode", decoded - mark)
        if prepared:
            (looked.small[scorer.name],) = scorer.prepare([looked.picture])  # type: ignore[attr-defined]
            add_seconds(looked.seconds, "resize", time.perf_counter() - decoded)
        elif scorer.batch_size == 1:
            looked.values[scorer.name] = scorer.score([looked.picture])
            add_seconds(looked.seconds, f"score:{scorer.name}", time.perf_counter() - decoded)


def held_bytes(rows: pl.DataFrame, sampling: Sampling | None) -> pl.Series:
    """Return what is held of each sample at once: of a file its encoded bytes, of a clip the pixels of its frames."""
    if sampling is None:
        return raw_bytes(rows)
    shrunk = pl.min_horizontal(1.0, sampling.short_side_px / pl.min_horizontal("width_px", "height_px"))
    seconds = (pl.col("end_frame") - pl.col("start_frame")) / pl.col("fps")
    frames = pl.max_horizontal(1.0, (seconds * pl.min_horizontal(sampling.fps, "fps")).floor())
    pixels = pl.col("width_px").cast(pl.Float64) * pl.col("height_px") * shrunk * shrunk
    return rows.select((frames * pixels * 3).ceil().cast(pl.Int64).alias("bytes")).to_series()


def chunk_sizes(held: Iterable[int], most_rows: int, most_bytes: int) -> Iterator[int]:
    """Cut a slice into chunks, a function of its rows alone: what is held of a chunk at once has a bound."""
    rows = size = 0
    for length in held:
        rows, size = rows + 1, size + length
        if rows >= most_rows or size >= most_bytes:
            yield rows
            rows = size = 0
    if rows:
        yield rows
