"""How many codes lower precision changes: the same pictures through a tokenizer and through its float32 self."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenmill.tokenize.vision import Pixels, VisionTokenizer, load_vision_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """`changed` of `codes` codes differ from those of float32."""

    codes: int = 0
    changed: int = 0

    @property
    def share(self) -> float:
        return self.changed / self.codes if self.codes else 0.0

    def __add__(self, other: Changes) -> Changes:
        return Changes(codes=self.codes + other.codes, changed=self.changed + other.changed)


def exact_tokenizer(spec: str | Path, **options: Any) -> VisionTokenizer | None:
    """Load the float32 self of a tokenizer, uncompiled; None where that is the tokenizer itself."""
    changing = {key for key, plain in (("dtype", "float32"), ("compile", False)) if options.get(key, plain) != plain}
    if not changing:
        return None
    kept = {key: value for key, value in options.items() if key not in ("dtype", "compile", "cuda_graphs")}
    return load_vision_tokenizer(spec, **kept)


def changed_codes(tokenizer: VisionTokenizer, exact: VisionTokenizer, images_BHWC: Pixels) -> Changes:
    """Compare the codes of images of one size."""
    one, other = tokenizer.encode_images(images_BHWC), exact.encode_images(images_BHWC)
    return Changes(codes=one.size, changed=int(np.count_nonzero(one != other)))
