"""Pages and conversations as tokens: their pictures go into the buckets of pictures, their texts are encoded beside.

The pictures of a document are decoded and resized by the decoding thread that read it; a page of 30 pictures of 512² is
24 MB until its codes are there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.pipelines.decoding import SampleReader
from tokenmill.pipelines.samples import SampleSlice
from tokenmill.pipelines.sources.raw_document import RawDocument, RawPicture, RawText
from tokenmill.pipelines.tokens_archive import TokenSample
from tokenmill.pipelines.tokens_images import ImageEncoder
from tokenmill.pipelines.tokens_model import Codes, Pixels
from tokenmill.pipelines.tokens_page import PagePolicy, PageTexts
from tokenmill.pipelines.tokens_words import Words
from tokenmill.tokenize.preference import check_pair

Ids = NDArray[np.uint32]


@dataclass(slots=True)
class _Page:
    """A document on its way: what was made of it in its thread, and the codes there are so far."""

    sample: TokenSample
    texts: PageTexts | None = None
    codes: dict[int, Codes] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return self.texts is None or len(self.codes) == len(self.texts.numbers)

    def finished(self) -> TokenSample:
        """Fill in the sample's segments, ids and codes; of a pair whose answers turn out equal the error."""
        if self.texts is not None:
            numbers = self.texts.numbers
            grids = {number: (codes.shape[0], codes.shape[1]) for number, codes in self.codes.items()}
            self.sample.segments, self.sample.text_ids = self.texts.segments(grids), self.texts.ids
            self.sample.codes = [self.codes[number][None] for number in numbers]
            self._check()
        return self.sample

    def _check(self) -> None:
        codes = np.concatenate([np.zeros(0, np.uint32), *(grid.ravel() for grid in self.sample.codes)])
        try:
            check_pair(self.sample.segments, self.sample.text_ids, codes)
        except SampleError as error:
            self.sample.error = error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A document whose texts are encoded and whose pictures are sized, or why the recipe does not want it."""

    texts: PageTexts | None = None
    pixels: dict[int, Pixels] = field(default_factory=dict)
    codes: dict[int, Codes] = field(default_factory=dict)
    captions: list[str] = field(default_factory=list)
    lost: dict[int, SampleError] = field(default_factory=dict)
    refusal: SampleError | None = None


class DocumentEncoder:
    """Encodes the documents of a slice; `encode` gives a text's ids as the archive may hold them, `shown` the text.

    `known` are codes that exist already, of all pictures of a document as they are stored, by its digest.
    """

    def __init__(
        self, images: ImageEncoder, policy: PagePolicy, encode: Callable[[str], Ids], shown: Callable[[str], str]
    ) -> None:
        self._images, self._policy, self._encode, self._shown = images, policy, encode, shown
        self.known: Mapping[str, Sequence[Codes]] = {}

    def __call__(
        self, reader: SampleReader, piece: SampleSlice, rows: pl.DataFrame, samples: Sequence[TokenSample]
    ) -> Iterator[TokenSample]:
        """Yield every sample filled in, in order, as soon as its pictures are codes."""
        order: deque[_Page] = deque()

        def pictures() -> Iterator[tuple[tuple[_Page, int], Pixels]]:
            found = reader.from_documents(piece, rows, self._prepared)
            for sample, prepared in zip(samples, found, strict=True):
                page = _Page(sample)
                order.append(page)
                if isinstance(prepared, SampleError) or prepared.refusal is not None:
                    sample.error = prepared if isinstance(prepared, SampleError) else prepared.refusal
                    continue
                page.texts, page.codes = prepared.texts, prepared.codes
                sample.is_taken_over = bool(prepared.codes)
                sample.words = Words(captions=prepared.captions)
                sample.left_out = {number: error.reason for number, error in prepared.lost.items()}
                yield from (((page, number), pixels) for number, pixels in prepared.pixels.items())

        for (page, number), codes in self._images.encoded(pictures()):
            assert not isinstance(codes, SampleError)  # pictures that are none were found out before
            page.codes[number] = codes
            while order and order[0].is_complete:
                yield order.popleft().finished()
        yield from (page.finished() for page in order)

    def _prepared(self, document: RawDocument, sha256: str) -> _Prepared:
        """Size a document's pictures and encode its texts, in a decoding thread; a broken one is a SampleError."""
        try:
            self._policy.check(document)
        except SampleError as error:
            return _Prepared(refusal=error)
        pixels, lost = dict[int, Pixels](), dict[int, SampleError]()
        codes = self.known.get(sha256, ())
        is_known = len(codes) == len(document.pictures)  # of one that lost pictures, nobody says which are left
        if not is_known:
            pixels, lost = self._sized(document)
        parts = self._policy.shown_parts(document.parts, lost)
        texts = PageTexts.of(parts, self._encode)
        captions = [one.text for one in parts if isinstance(one, RawText) and one.role == "caption"]
        return _Prepared(
            texts=texts,
            pixels={} if is_known else {number: pixels[number] for number in texts.numbers},
            codes=dict(zip(texts.numbers, codes, strict=True)) if is_known else {},
            captions=[self._shown(one) for one in captions],
            lost=lost,
        )

    def _sized(self, document: RawDocument) -> tuple[dict[int, Pixels], dict[int, SampleError]]:
        pixels, lost = dict[int, Pixels](), dict[int, SampleError]()
        for number in sorted({part.number for part in document.parts if isinstance(part, RawPicture)}):
            try:
                pixels[number] = self._images.sized(document.pictures[number])
            except SampleError as error:
                if error.transient or not self._policy.may_lose(document):
                    raise SampleError(error.reason, f"picture {number}: {error.message}") from error
                lost[number] = error
        return pixels, lost
