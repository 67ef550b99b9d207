"""Which language a text is in, by py3langid: what the scorer `language` and the checks of captions have in common.

In the spine, since neither room may import the other, and a caption that the selection calls English must not be called
German by the check. Compared with other libraries in `filters/language.py`. The model (140 languages, 4.6 MB) is loaded
at the first text. It reads a byte at a time in Python, so of a long text only a sample is read.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

_NO_LANGUAGE = frozenset({"zxx", "und"})
_WINDOWS = 3
_LETTER = re.compile(r"[^\W\d_]")
_ADDRESS = re.compile(r"\b\w+://\S+")


def identify(text: str) -> tuple[str | None, float | None]:
    """Return the likeliest language and its probability; no language where the text has none, neither if no letters."""
    spoken = _ADDRESS.sub(" ", text) if "://" in text else text
    if not _LETTER.search(spoken):
        return None, None
    language, confidence = _identifier().classify(spoken)
    return (None if language in _NO_LANGUAGE else language), float(confidence)


def sampled(text: str, most_bytes: int) -> str:
    """Return a text of at most `most_bytes` in UTF-8 as it is, of a longer one its beginning, middle and end."""
    data = text.encode()
    if len(data) <= most_bytes:
        return text
    piece = most_bytes // _WINDOWS
    step = (len(data) - piece) // (_WINDOWS - 1)
    pieces = (data[start : start + piece] for start in range(0, _WINDOWS * step, step))
    return "\n".join(piece.decode(errors="ignore") for piece in pieces)


@cache
def known_languages() -> frozenset[str]:
    """Return what `identify` may answer."""
    return frozenset(map(str, _identifier().nb_classes)) - _NO_LANGUAGE


@cache
def model_digest() -> str:
    """Return the sha256 of the model file."""
    return hashlib.sha256(_model_path().read_bytes()).hexdigest()


def _model_path() -> Path:
    from py3langid.langid import MODEL_DIR, MODEL_FILE

    folder, file = Path(MODEL_DIR), str(MODEL_FILE)
    return folder / file


@cache
def _identifier() -> Any:
    from py3langid.langid import LanguageIdentifier

    return LanguageIdentifier.from_model_file(_model_path(), norm_probs=True)
