"""Pictures that must not be in: those on lists of hashes, exact (SHA-256 of the file) or perceptual (near copies).

The lists are files of hexadecimal hashes (`hash_lists.py`). The distance to a list is looked up by brute force: 1 ms a
picture for a million perceptual hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import polars as pl
from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from tokenmill.filters.hash_lists import PHASH_BYTES, SHA256_BYTES, HashList, read_hash_lists
from tokenmill.filters.perceptual_hash import PerceptualHash
from tokenmill.filters.scorer import Columns, Picture, fingerprint
from tokenmill.manifests.identity import sha256_hex


def one_or_more(value: Any) -> Any:
    """Let a setting that takes paths be given as one path."""
    return (value,) if isinstance(value, str) else value


Paths = Annotated[tuple[str, ...], BeforeValidator(one_or_more)]


@dataclass(frozen=True, kw_only=True)
class Blocklist:
    """Whether a picture is on a list, and how many bits lie between its perceptual hash and the nearest on a list.

    Args:
        sha256: path or paths of lists of 64 digits, of whole files.
        phash: path or paths of lists of 16 digits, as the scorer `perceptual_hash` computes them.
        max_distance: a picture is blocked within so many bits; `blocklist_distance_bits` is null beyond.
    """

    sha256: Paths = ()
    phash: Paths = ()
    max_distance: Annotated[int, Field(ge=0, le=32)] = 6

    name: ClassVar = "blocklist"
    version: ClassVar = 1
    takes: ClassVar[Literal["image"]] = "image"
    places: ClassVar = ("sha256", "phash")
    views: ClassVar = PerceptualHash.views
    batch_size: ClassVar = PerceptualHash.batch_size
    columns: ClassVar = {"is_blocklisted": pl.Boolean(), "blocklist_distance_bits": pl.UInt8()}

    @model_validator(mode="after")
    def _some_list(self) -> Blocklist:
        if not self.sha256 and not self.phash:
            raise ValueError("name a list: sha256 or phash")
        _ = self._lists  # a list that cannot be read is an error of the recipe, before anything runs
        return self

    @property
    def fingerprint(self) -> str:
        """Covers what the lists hold, not where they lie."""
        exact, near = self._lists
        settings = {"max_distance": self.max_distance, "phash_version": PerceptualHash.version}
        return fingerprint(self.name, self.version, settings, weights=f"{exact.digest} {near.digest}")

    def score(self, batch: Sequence[Picture]) -> Columns:
        """Look pictures up one by one."""
        found = [self._looked_up(picture) for picture in batch]
        return {
            "is_blocklisted": [blocked for blocked, _ in found],
            "blocklist_distance_bits": [distance for _, distance in found],
        }

    def _looked_up(self, picture: Picture) -> tuple[bool, int | None]:
        exact, near = self._lists
        distance = None
        if len(near.rows):
            (phash,) = PerceptualHash().score([picture])["phash"]
            distance = near.nearest_bits(phash) if phash is not None else None
        if distance is not None and distance > self.max_distance:
            distance = None
        digest = picture.sha256 or (sha256_hex(picture.data) if picture.data else "")
        blocked = distance is not None or (bool(digest) and exact.holds(bytes.fromhex(digest)))
        return blocked, distance

    @cached_property
    def _lists(self) -> tuple[HashList, HashList]:
        where = f"scorer {self.name!r}"
        return (
            read_hash_lists(self.sha256, SHA256_BYTES, f"{where}: sha256"),
            read_hash_lists(self.phash, PHASH_BYTES, f"{where}: phash"),
        )
