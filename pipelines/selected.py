"""The kept samples of a slice, as captioning and tokenizing see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from tokenmill.manifests.records import Commit, InputRef
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.samples import SampleSlice


@dataclass(frozen=True, kw_only=True)
class Selected:
    """A slice with the record of its selection."""

    piece: SampleSlice
    folder: StageDir
    commit: Commit

    def read(self) -> pl.DataFrame:
        """Return the index rows of the kept samples, with the carried scores, in order."""
        chosen = self.folder.read_rows(self.commit).filter(pl.col("keep"))
        chosen = chosen.drop("keep", "drop_reason", "fail_reason", "duplicate_of", "rescued_by", strict=False)
        return self.piece.read().join(chosen, on="key", how="inner", maintain_order="left")

    def carried(self) -> list[str]:
        """Name the scores that travel with a kept sample into its archive."""
        return list(self.folder.config.settings["carry"])

    @property
    def kept_reference(self) -> InputRef:
        return InputRef(name="kept", digest=self.commit.digests["kept"])


def selected_slices(pieces: Sequence[SampleSlice], snapshot: Snapshot) -> list[Selected]:
    """Pair slices with their selection: the units of a selection stand in the order of the slices."""
    return [
        Selected(piece=piece, folder=snapshot.folder, commit=commit)
        for piece, commit in zip(pieces, snapshot.commits, strict=True)
    ]
