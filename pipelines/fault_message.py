"""Make an error's text fit to be stored: the same fault must give the same bytes on every machine and every run."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
_OBJECT = re.compile(r"<[^<>]* object at 0x[0-9a-fA-F]+>")
_PATH = re.compile(r"(?<![\w:/])/(?:[^\s/:'\"]+/)+[^\s:'\",;)]*")
_LONGEST = 200


def fault_message(error: BaseException | str) -> str:
    """Put `error` on one line of at most 200 characters, without addresses, paths or object representations."""
    text = _PATH.sub("<path>", _ADDRESS.sub("<address>", _OBJECT.sub("<object>", str(error))))
    line = " ".join(text.split()) or type(error).__name__
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
