"""Scorers of texts and pictures on documents: values put together, batches over several documents, bounded sharing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
from tests.pages import drawn

from tokenmill.filters.document_shape import DocumentShape
from tokenmill.filters.on_documents import on_documents
from tokenmill.filters.pages import Pages
from tokenmill.filters.picture import Picture
from tokenmill.filters.scorer import Columns, build_scorer
from tokenmill.pipelines.decode_image import decode_image


@dataclass(frozen=True, kw_only=True)
class Brightness:
    """A scorer with a model, as far as the pass can tell; notes the batches that it gets."""

    name: ClassVar = "brightness"
    version: ClassVar = 1
    takes: ClassVar[Literal["image"]] = "image"
    batch_size: ClassVar = 2
    columns: ClassVar = {"brightness": pl.Float64()}
    fingerprint: ClassVar = "00"
    batches: list[int] = field(default_factory=list)

    def prepare(self, batch: Sequence[Picture]) -> Sequence[Any]:
        return [picture.rgb() for picture in batch]

    def score_prepared(self, batch: Sequence[Any]) -> Columns:
        self.batches.append(len(batch))
        return {"brightness": [float(np.mean(pixels)) for pixels in batch]}

    def score(self, batch: Sequence[Picture]) -> Columns:
        return self.score_prepared(self.prepare(batch))


def pages(*numbers: int, texts: Sequence[tuple[str, str]] = (), opened: list[int] | None = None) -> Pages:
    def open_picture(place: int) -> Picture:
        if opened is not None:
            opened.append(place)
        return Picture.of(decode_image(drawn(numbers[place]), max_pixels=1 << 20))

    return Pages(texts, len(numbers), open_picture)


def _brightness(number: int) -> float:
    return float(np.mean(decode_image(drawn(number), max_pixels=1 << 20)))


def test_models_get_the_pictures_of_several_documents_in_one_batch():
    scorer = Brightness()
    called = on_documents({"b": scorer}, {"b": "max"})["b"]
    documents = [pages(0, 1, 2), pages(), pages(3)]
    found = called.score_prepared(called.prepare(documents))["brightness"]
    assert scorer.batches == [2, 2]
    assert found == [max(map(_brightness, (0, 1, 2))), None, _brightness(3)]
    assert found == called.score(documents)["brightness"]


def test_scorer_without_a_model_gets_one_document_at_a_time():
    called = on_documents({"r": build_scorer("resolution")}, {"r": "min"})["r"]
    assert called.batch_size == 1
    assert called.score([pages(0, 1)])["width_px"] == [64] and called.score([pages()])["width_px"] == [None]


def test_texts_are_one_text_and_a_shape_counts_them():
    told = [("one", "user"), ("two words", "assistant")]
    texts = on_documents({"t": build_scorer("text_statistics")}, {"t": "mean"})["t"].score([pages(texts=told)])
    assert texts["num_words"] == [3] and texts["num_chars"] == [len("one\ntwo words")]
    assert DocumentShape().score([pages(4, 5, texts=told)]) == {
        "num_pictures": [2], "num_texts": [2], "num_characters": [12], "num_answers": [1]
    }  # fmt: skip


def test_pictures_are_shared_between_scorers_up_to_a_bound_and_let_go():
    opened: list[int] = []
    document = pages(*([0] * 40), opened=opened)
    called = on_documents({"r": build_scorer("resolution")}, {"r": "min"})["r"]
    called.score([document]), called.score([document])
    assert opened == [*range(40), *range(32, 40)]
    document.release()
    called.score([document])
    assert opened[48:] == list(range(40))
