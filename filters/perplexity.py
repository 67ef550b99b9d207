"""How surprised a language model of your choice is by a text: low for prose like its training data, high for debris.

The model is a causal language model of Hugging Face (a folder or a hub name, safetensors only) or an n-gram model in
ARPA format, as KenLM and SRILM write it (a file that ends in .arpa or .arpa.gz). Perplexity is exp of the mean
negative natural logarithm of a token's probability, so models with different tokens cannot be compared with each
other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Protocol

import polars as pl
from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.filters.scorer import Columns, fingerprint


class LanguageModel(Protocol):
    """Gives texts the sum of their tokens' log probabilities."""

    @property
    def digest(self) -> str:
        """Hex sha256 of the files that decide."""

    def prepared(self, text: str) -> Any:
        """Return what the model reads of a text."""

    def log_probabilities(self, batch: Sequence[Any]) -> list[tuple[float, int]]:
        """Return for each prepared text the sum of natural log probabilities and over how many tokens."""


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Perplexity a token, and of how many tokens; null where there is no token to predict.

    Args:
        model: folder, hub name, or path of an ARPA file.
        revision: of a hub name; name a commit, a branch may move.
        max_tokens: only the beginning of a longer text is read (causal models).
        batch_size: texts a call; a device needs batch_size x max_tokens x vocabulary x 4 bytes for the logits.
        dtype: of the weights; values differ by the batch's size in the sixth digit (float32) or the third (bfloat16).
        device: `auto` takes CUDA where there is one.
        lower: fold texts to lower case first.
    """

    model: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    max_tokens: Annotated[int, Field(ge=2)] = 512
    batch_size: Annotated[int, Field(ge=1, le=64)] = 8
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    lower: bool = False

    name: ClassVar = "perplexity"
    version: ClassVar = 2
    takes: ClassVar[Literal["text"]] = "text"
    places: ClassVar = ("model", "revision", "device")
    columns: ClassVar = {"perplexity": pl.Float32(), "perplexity_tokens": pl.Int32()}

    @property
    def fingerprint(self) -> str:
        """Covers the model's files and what shapes values; not where they lie, nor the device."""
        settings = {"lower": self.lower}
        if not self._is_ngram:
            settings |= {"max_tokens": self.max_tokens, "batch_size": self.batch_size, "dtype": self.dtype}  # type: ignore[dict-item]
        return fingerprint(self.name, self.version, settings, weights=self._model.digest)

    def score(self, batch: Sequence[str]) -> Columns:
        """Score texts in one batch."""
        return self.score_prepared(self.prepare(batch))

    def prepare(self, batch: Sequence[str]) -> Sequence[Any]:
        """Tokenize texts (causal models), no weights are loaded for it."""
        return [self._model.prepared(text.lower() if self.lower else text) for text in batch]

    def score_prepared(self, batch: Sequence[Any]) -> Columns:
        """Score what `prepare` returned."""
        sums = self._model.log_probabilities(batch)
        return {
            "perplexity": [_perplexity(total, number) for total, number in sums],
            "perplexity_tokens": [number for _, number in sums],
        }

    @property
    def _is_ngram(self) -> bool:
        return self.model.endswith((".arpa", ".arpa.gz"))

    @cached_property
    def _model(self) -> LanguageModel:
        if self._is_ngram:
            from tokenmill.filters.ngram_model import NgramModel

            return NgramModel(self.model)
        from tokenmill.filters.causal_model import CausalModel

        return CausalModel(
            self.model, revision=self.revision, max_tokens=self.max_tokens, dtype=self.dtype, device=self.device
        )


def _perplexity(total: float, number: int) -> float | None:
    if not number:
        return None
    return math.exp(min(-total / number, 88.0))  # float32 ends at e^88.7
