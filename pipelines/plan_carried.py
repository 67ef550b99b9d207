"""What remains of a window of the plan before, as an input of a window: named, not listed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.records import InputRef

GONE = "gone"  # the reason of a document whose shard left the snapshots
SEEN = "seen.parquet"  # in a plan's folder: what its fresh passes leave out
CARRIED = "carried_documents"  # what a window's totals call the number of documents taken over
LOWERED = "lowered"  # of one in a pass that the mix does not ask for any more
_SCATTER = 2654435761  # Knuth's multiplier: neighbours in a shard go to different parts


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedWindow:
    """What remains of a window of the plan before, or one part of several of it.

    Attributes:
        number: of the window in that plan.
        table: where its documents are, relative to the root.
        first_pack, num_packs: packs [first_pack, num_packs) of it remain.
        num_documents: as many as that plan has a pack on average.
        num_ids: as many as the packs could hold.
    """

    number: int
    table: str
    digest: str
    first_pack: int
    num_packs: int
    num_documents: float
    num_ids: int
    part: int = 0
    parts: int = 1

    @property
    def reference(self) -> InputRef:
        digest = self.digest if self.parts == 1 else digest_of([self.digest, self.part, self.parts])
        return InputRef(
            name=self.table, digest=digest, start=self.first_pack, end=self.num_packs, unit_of_range="packs"
        )


def in_part(samples: NDArray[Any], part: int, parts: int) -> NDArray[np.bool_]:
    """Say which samples, by their rows in the index, belong to a part; every sample belongs to one."""
    scattered = (samples.astype(np.uint64) * np.uint64(_SCATTER)) & np.uint64(0xFFFFFFFF)
    chosen: NDArray[np.bool_] = (scattered * np.uint64(parts)) >> np.uint64(32) == part
    return chosen
