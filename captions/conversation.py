"""What a model in this process is told: pictures from frames, and words that cannot pose as anything but words."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from tokenmill.captions.captioner import Request

_SHORTEST = 3  # characters of a control token; some tokenizers call line breaks special


def pictures_of(request: Request) -> list[Any]:
    """Return a request's frames as Pillow images, none for a question about words alone."""
    from PIL import Image

    return [] if request.frames is None else [Image.fromarray(frame) for frame in request.frames]


def control_tokens(tokenizer: Any, *more: object) -> frozenset[str]:
    """Return the texts that a tokenizer takes for more than words (`<image>`, `<|im_end|>`), and `more` of them."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    found = {*tokenizer.all_special_tokens, *added, *(one for one in more if isinstance(one, str))}
    return frozenset(token for token in found if len(token.strip()) >= _SHORTEST)


def disarmed(text: str, tokens: Collection[str]) -> str:
    """Put a space into every control token that stands in a text: captions of strangers are part of prompts."""
    if not tokens:
        return text
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    pattern = "|".join(map(re.escape, longest_first))
    return re.sub(pattern, lambda found: f"{found[0][0]} {found[0][1:]}", text)
