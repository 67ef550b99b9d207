"""Scorers of texts and of pictures on documents: all texts as one, and all pictures, whose numbers become one.

`resolution: {reduce: min}` judges a page by its smallest picture; a page without pictures gets null. A document is
scored alone by scorers without a model, so that one it cannot be scored by is its own fault; models get the pictures of
several documents in a batch, cut where the documents of a chunk begin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

from tokenmill.filters.clip_frames import Reduce, reduced_value
from tokenmill.filters.pages import Pages
from tokenmill.filters.picture import Picture
from tokenmill.filters.scorer import Columns, PreparedScorer, Scorer, check_columns, is_prepared

_Some = Sequence[Any]


class OnDocuments:
    """A scorer as the pass calls it on documents: one that takes documents gets them whole."""

    views: ClassVar = ()

    def __init__(self, scorer: Scorer, reduce: Reduce) -> None:
        self.scorer, self.reduce = scorer, reduce
        self.name, self.columns = scorer.name, scorer.columns
        self.batch_size = scorer.batch_size if is_prepared(scorer) else 1

    def score(self, batch: Sequence[Pages]) -> Columns:
        """Score documents."""
        return self._scored([self._seen(document) for document in batch], self.scorer.score)

    def _seen(self, document: Pages) -> _Some:
        """Return what the scorer sees of a document."""
        if self.scorer.takes == "document":
            return [document]
        if self.scorer.takes == "text":
            return [document.text]
        return _Opened(document)

    def _scored(self, documents: Sequence[_Some], score: Callable[[_Some], Columns]) -> Columns:
        """Score the parts of some documents in batches, and put together what belongs to one."""
        found: dict[str, list[Any]] = {column: [] for column in self.columns}
        for batch in _batches(documents, self.scorer.batch_size):
            columns = score(batch)
            check_columns(self.scorer, columns, len(batch))
            for column, values in columns.items():
                found[column].extend(values)
        sizes = [len(document) for document in documents]
        return {column: list(self._reduced(column, sizes, values)) for column, values in found.items()}

    def _reduced(self, column: str, sizes: Sequence[int], values: _Some) -> Iterator[Any]:
        start = 0
        for size in sizes:
            some = values[start : start + size]
            yield reduced_value(some, self.columns[column], self.reduce) if some else None
            start += size


class PreparedOnDocuments(OnDocuments):
    """The same for a scorer with a model."""

    def prepare(self, batch: Sequence[Pages]) -> _Some:
        """Make of each document a list: what the model sees of its text, or of each of its pictures."""
        scorer = cast(PreparedScorer, self.scorer)
        return [[small for part in self._seen(document) for small in scorer.prepare([part])] for document in batch]

    def score_prepared(self, batch: _Some) -> Columns:
        """Score what `prepare` returned."""
        return self._scored(batch, cast(PreparedScorer, self.scorer).score_prepared)


class _Opened(Sequence[Picture]):
    """The pictures of a document, each opened when its turn comes."""

    def __init__(self, document: Pages) -> None:
        self._document = document

    def __len__(self) -> int:
        return self._document.num_pictures

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self._document.picture(number)


def on_documents(scorers: Mapping[str, Scorer], reduces: Mapping[str, Reduce]) -> dict[str, Scorer]:
    """Return scorers of documents, texts and pictures as scorers of documents."""
    return {
        name: cast(Scorer, (PreparedOnDocuments if is_prepared(scorer) else OnDocuments)(scorer, reduces[name]))
        for name, scorer in scorers.items()
    }


def _batches(documents: Sequence[_Some], size: int) -> Iterator[list[Any]]:
    """Yield the parts of some documents in batches; no more of them are held than a batch has."""
    batch: list[Any] = []
    for document in documents:
        for part in document:
            batch.append(part)
            if len(batch) == size:
                yield batch
                batch = []
    if batch:
        yield batch
