"""How inputs become units: which files go together, and where a large one is cut. Pure functions.

A boundary between groups comes from a hash of the file's name, so inserting or appending files moves only the groups
next to them; a limit on raw bytes keeps every group workable. A small change of the limit therefore regroups much.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeVar


class Sized(Protocol):
    @property
    def path(self) -> str: ...

    @property
    def size(self) -> int: ...


F = TypeVar("F", bound=Sized)


def group_files(files: Sequence[F], *, max_bytes: int, mean_files: int) -> list[list[F]]:
    """Group files, in their order, into lists of at most `max_bytes` (a larger file stands alone).

    A file begins a new group where the hash of its path is a multiple of `mean_files`; 1 makes each file a group.
    """
    groups: list[list[F]] = []
    size = 0
    for file in files:
        begins = _hash(file.path) % mean_files == 0
        if not groups or begins or size + file.size > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += file.size
    return groups


@dataclass(frozen=True, slots=True)
class RowRange:
    """A half-open range of a unit's rows; `whole` when it is all of them."""

    start: int
    end: int
    whole: bool


def cut_rows(num_rows: int, num_bytes: int, *, max_rows: int, max_bytes: int) -> list[RowRange]:
    """Cut a unit's rows into equal ranges, none above `max_rows` or (on average) `max_bytes`; at least one range."""
    pieces = max(1, -(-num_rows // max_rows), -(-num_bytes // max_bytes))
    pieces = min(pieces, max(num_rows, 1))
    borders = [num_rows * piece // pieces for piece in range(pieces + 1)]
    return [RowRange(a, b, pieces == 1) for a, b in pairwise(borders)]


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big")
