"""Lists of hashes that others keep: one hexadecimal hash a line; blank lines and `#` comments are skipped.

Held as sorted numbers: a million SHA-256 take 32 MB. What a list says is part of a scorer's fingerprint, by the
digest of its hashes, so a comment or another order changes nothing and another hash makes new columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError

SHA256_BYTES, PHASH_BYTES = 32, 8


@dataclass(frozen=True, kw_only=True)
class HashList:
    """Distinct hashes of one length as rows of big-endian 64-bit numbers, sorted: (N, bytes / 8)."""

    rows: NDArray[np.uint64]

    @property
    def digest(self) -> str:
        """Hex sha256 of the sorted hashes."""
        return hashlib.sha256(self.rows.astype(">u8").tobytes()).hexdigest()

    def holds(self, value: bytes) -> bool:
        """Tell whether a hash is on the list."""
        wanted = np.frombuffer(value, dtype=">u8").astype(np.uint64)
        first = self.rows[:, 0]
        start, end = np.searchsorted(first, wanted[0], "left"), np.searchsorted(first, wanted[0], "right")
        return bool((self.rows[start:end] == wanted).all(axis=1).any())

    def nearest_bits(self, value: int) -> int | None:
        """Return the fewest bits between a 64-bit hash and one of the list; None for an empty list."""
        if not len(self.rows):
            return None
        return int(np.bitwise_count(self.rows[:, 0] ^ np.uint64(value)).min())


def read_hash_lists(paths: Sequence[str], num_bytes: int, where: str) -> HashList:
    """Read the union of some lists; raises RecipeError naming `where`, the file and the line."""
    found = [_read(Path(path).expanduser(), num_bytes, where) for path in paths]
    numbers = np.frombuffer(b"".join(found), dtype=">u8").astype(np.uint64).reshape(-1, num_bytes // 8)
    return HashList(rows=np.unique(numbers, axis=0))


def read_lines(path: Path, where: str) -> list[tuple[int, str]]:
    """Return a list's entries with their line numbers, comments and blank lines left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RecipeError(f"{where}: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{where}: {path} is not a text in UTF-8 (byte {error.start})") from error
    lines = enumerate(map(str.strip, text.split("\n")), 1)
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def _read(path: Path, num_bytes: int, where: str) -> bytes:
    hashes = []
    for number, line in read_lines(path, where):
        try:
            value = bytes.fromhex(line)
        except ValueError:
            value = b""
        if len(value) != num_bytes:
            raise RecipeError(
                f"{where}: {path}, line {number}: a hash has {2 * num_bytes} hexadecimal digits, found {line[:80]!r}"
            )
        hashes.append(value)
    return b"".join(hashes)
