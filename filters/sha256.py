"""The digest of a sample's bytes as a column, for block lists, joins with other tables, and audits.

Ingest took it and every read compares it, so it costs nothing; exact duplicates go by the index's own and don't need
this scorer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import polars as pl

from tokenmill.filters.scorer import Columns, Picture, View, fingerprint_of


@dataclass(frozen=True, kw_only=True)
class Sha256:
    """Hex sha256 of the encoded picture; of a clip, of its film's digest and its frames."""

    name: ClassVar = "sha256"
    version: ClassVar = 1
    takes: ClassVar[Literal["image"]] = "image"
    batch_size: ClassVar = 1
    views: ClassVar[tuple[View, ...]] = ()
    columns: ClassVar = {"sha256": pl.String()}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self)

    def score(self, batch: Sequence[Picture]) -> Columns:
        """Hand on the digests that the pictures were read by."""
        return {"sha256": [picture.sha256 or None for picture in batch]}
