"""Where a long text may be cut so that the ids of its pieces are the ids of the whole.

Byte-pair encoding never looks across the pieces of its split expression, so a text may be cut wherever that expression
certainly splits, whatever stands around. The places below are certain for Qwen's expression, and those before a space
for every expression that takes at most one space in front of a word. A piece of 65,536 characters costs about 4 MB
while it is encoded; a text of 200 MB encoded at once costs 2 GB of Python's whole numbers.

The expression splits, with a the last character before the cut and b the first one behind:
* a is a line break, b is no space: what takes line breaks takes them up to the last one of a run, and nothing more;
* a is no space, b is a blank or a tab: no alternative holds a space behind anything else;
* a is a letter or number, b is ASCII or CJK punctuation: what holds letters ends with them;
* a is a digit, b is ASCII: a number stands alone;
* both are spaces and no line breaks, and no space follows b: the last space goes with the word behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tokenmill.errors import SampleError

PIECE_CHARACTERS = 65_536
LONGEST_PIECE_BYTES = 8 * 2**20

# White_Space of Unicode, which is `\s` of the split expression, without the line breaks \r and \n. Python's `\s` holds
# four control characters more, so Python's `\S` is on the safe side.
_SPACES = "\t\x0b\x0c \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_PUNCTUATION = r"!-/:-@\[-`{-~" + "、。〈-】！，．：；？…"

QWEN_CUTS = re.compile(
    rf"(?<=[\r\n])(?=\S)|(?<=\S)(?=[ \t])|(?<=[^\W_])(?=[{_PUNCTUATION}])|(?<=[0-9])(?=[!-~])"
    rf"|(?<=[{_SPACES}])(?=[{_SPACES}]\S)"
)
BLANK_CUTS = re.compile(r"(?<=[^\W_]|[!-/:-@\[-`{-~])(?= )")
"""Between a letter, a number or ASCII punctuation and a blank: for the expressions of text_huggingface_file.py."""

# A run of a million overflows the stack of the expression's `\s+(?!\S)`. A run begins at a certain place: what
# stands before it is no space, or a line break that the run before ends with, because none follows.
_LONG_RUN = re.compile(rf"(?<![{_SPACES}])[{_SPACES}]{{{PIECE_CHARACTERS // 2},}}+(?![\r\n])")
_TAIL = 4096


def cut(text: str, places: re.Pattern[str], size: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Yield the text in pieces of at most `size` characters, longer only where no place is to be found in so many."""
    start = 0
    while len(text) - start > size:
        end = _place(text, places, start, start + size)
        yield text[start:end]
        start = end
    if start < len(text) or not text:
        yield text[start:]


def _place(text: str, places: re.Pattern[str], start: int, end: int) -> int:
    """Return the last place in (start, end), looked for from behind; else the first one from `end` on."""
    for tail in (_TAIL, end - start - 1):
        found = [match.start() for match in places.finditer(text, max(start + 1, end - tail), end)]
        if found:
            return found[-1]
    after = places.search(text, end)
    return after.start() if after else len(text)


def runs_apart(piece: str) -> Iterator[tuple[str, bool]]:
    """Yield a piece in parts, and of each whether it is a run of spaces that the expression takes as one."""
    start = 0
    for run in _LONG_RUN.finditer(piece) if len(piece) > PIECE_CHARACTERS // 2 else ():
        end = run.end() if run.end() == len(piece) else run.end() - 1
        if run.start() > start:
            yield piece[start : run.start()], False
        yield piece[run.start() : end], True
        start = end
    if start < len(piece):
        yield piece[start:], False


def check_length(piece: str) -> None:
    """Refuse a piece over 8 MiB, of which encoding would take some 50 times as much; raises SampleError."""
    if len(piece) > LONGEST_PIECE_BYTES // 4 and len(piece.encode("utf-8", "replace")) > LONGEST_PIECE_BYTES:
        raise SampleError("unsplittable", f"over {LONGEST_PIECE_BYTES} bytes without a place where ids certainly split")
