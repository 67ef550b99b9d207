"""Files of JSON rows, one a step: metrics, samples, unreadable samples.

Rows are keyed by step. A resumed run drops the rows after the step it goes on from, so the file reads as if the run had
never been interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file; a last line that a kill cut off is passed over."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


class RowTail:
    """The rows that come to a file while somebody watches it; every byte is read once, however often one asks."""

    def __init__(self, path: Path) -> None:
        self._path, self._read_bytes = path, 0

    def new(self) -> list[dict[str, Any]]:
        """Return the whole rows since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read_bytes)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class RowFile:
    """A JSONL file that grows by a row at a time and can be cut back to a step."""

    def __init__(self, path: Path, upto_step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_rows(path) if row["step"] <= upto_step]
        temporary = path.with_suffix(".part")
        temporary.write_text("".join(map(_line, kept)), encoding="utf-8")
        temporary.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def add(self, row: Mapping[str, Any]) -> None:
        self._file.write(_line(row))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"
