"""Which language a text is in, by py3langid: its model (140 languages, 4.6 MB) comes in the wheel.

Compared on one core with 4,546 single sentences (20 characters and more) and 1,478 pieces of eight sentences in 77
languages, from django's message catalogues (`benchmarks/text_scorers.py --languages`; software texts, which may flatter
a library that learned from such):

    library                licence             MB    sentences right, MB/s    pieces right, MB/s
    py3langid 0.4          BSD-3               4.6   .907   1.4               .965   2.5
    fastText lid.176.ftz   MIT, CC-BY-SA-3     1     .792   3.9               .934   5.7
    lingua 2.1 (Rust)      Apache-2.0          96    .736   0.1               .807   0.5
    pycld2 0.42            Apache-2.0          14    raises on some valid texts

py3langid's confidence says what it promises: of sentences at .5 to .6, 81 % are right, at .8 and more 99.8 %. It reads
a byte at a time in Python, so of a long text only a sample is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version as version_of
from typing import Annotated, ClassVar, Literal

import polars as pl
from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.filters.scorer import Columns, fingerprint_of
from tokenmill.languages import identify, model_digest, sampled


@dataclass(frozen=True, kw_only=True)
class Language:
    """Language as ISO 639-1 (ISO 639-3 where there is no shorter code), and how sure that is.

    Args:
        min_confidence: below this `language` is null; the confidence is stored all the same.
        sample_bytes: of a longer text so many bytes of UTF-8 are read, a third each of its beginning, middle and end.
    """

    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.1
    sample_bytes: Annotated[int, Field(ge=60)] = 360

    name: ClassVar = "language"
    version: ClassVar = 1
    takes: ClassVar[Literal["text"]] = "text"
    batch_size: ClassVar = 64
    columns: ClassVar = {"language": pl.String(), "language_confidence": pl.Float32()}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self, weights=f"py3langid {version_of('py3langid')} {model_digest()}")

    def score(self, batch: Sequence[str]) -> Columns:
        """Identify texts one by one; without letters language and confidence are null."""
        found = [self._identified(text) for text in batch]
        return {"language": [language for language, _ in found], "language_confidence": [sure for _, sure in found]}

    def _identified(self, text: str) -> tuple[str | None, float | None]:
        language, confidence = identify(sampled(text, self.sample_bytes))
        return (language if confidence is not None and confidence >= self.min_confidence else None), confidence
