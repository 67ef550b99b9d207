"""What passes between the halves of scoring: a sheet of columns that fills up, and what was seen of each sample."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenmill.errors import RunError, SampleError
from tokenmill.filters.picture import Picture
from tokenmill.filters.scorer import Scorer, is_prepared, views_of

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
        if columns.keys() != scorer.columns.keys():
            said, offered = ", ".join(sorted(columns)) or "none", ", ".join(sorted(scorer.columns))
            raise RunError(f"scorer {scorer.name!r}: returned the columns {said}; it offers {offered}")
        for column, values in columns.items():
            if len(values) != len(places):
                raise RunError(f"scorer {scorer.name!r}: {len(values)} values of {column!r} for {len(places)} samples")
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
    """What the scorers that looked at one picture made of it: values, or what their model is to see."""

    picture: Picture
    values: dict[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)
    small: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, SampleError] = field(default_factory=dict)
    seconds: Seconds = field(default_factory=dict)


class Look:
    """Lets scorers look at a picture in the thread that decodes it: views, then `score` or `prepare`.

    Scorers that want batches (`batch_size` above 1, no `prepare`) only have their views decoded here.
    """

    def __init__(self, scorers: Sequence[Scorer], *, release: bool = True) -> None:
        self._scorers = [(s, is_prepared(s), views_of(s)) for s in scorers]
        self._release = release

    def __call__(self, picture: Picture, decode_s: float = 0.0) -> Looked:
        looked = Looked(picture=picture, seconds={"decode": decode_s})
        for scorer, prepared, views in self._scorers:
            try:
                self._look(scorer, prepared, views, looked)
            except SampleError as error:
                looked.faults[scorer.name] = error
        if self._release:
            picture.release()
        return looked

    def _look(self, scorer: Scorer, prepared: bool, views: Sequence[Any], looked: Looked) -> None:
        mark = time.perf_counter()
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
