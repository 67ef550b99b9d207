"""Reference log-probabilities: what the starting weights give the answers of a plan's pairs, computed once and kept.

    plans/<phase>/<plan>/references/<weights>/packs-00000000-00000256-<sha8>.parquet      one row a pair

<weights> are digits of the digest of all weights and the precision they compute in, so another model never finds them,
and a run that is started again finds what is there: a part is a stretch of packs, published when it is whole. A model
beside the trained one would take its memory and a third more of every epoch's time; a pair here takes 30 bytes.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import ManifestError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.named_tables import open_named_table
from tokenmill.manifests.stagedir import table_bytes
from tokenmill.manifests.storage import Store
from tokenmill.train.pair_places import PairPlaces

PART_PACKS = 256
SCHEMA = 1
COLUMNS: Mapping[str, Any] = {
    "pack": pl.Int64,  # of the plan
    "slot": pl.Int32,  # of the chosen answer; the rejected one is in the next
    "chosen": pl.Float64,  # log-probability; null where the sample could not be read
    "rejected": pl.Float64,
    "chosen_ids": pl.Int32,  # that the log-probability is the sum of
    "rejected_ids": pl.Int32,
}
Row: TypeAlias = tuple[float | None, float | None, int, int]
_TABLES_KEPT = 4
_NAME = re.compile(r"packs-(\d{8,})-(\d{8,})-[0-9a-f]{8}\.parquet")


@dataclass
class ReferenceFolder:
    """The parts of one model's log-probabilities that a plan has; `path` is their folder. Not for several threads."""

    store: Store
    path: str
    _parts: dict[int, tuple[int, str]] | None = None
    _tables: OrderedDict[str, dict[tuple[int, int], Row]] = field(default_factory=OrderedDict)

    def missing(self, packs: range) -> list[range]:
        """Return the parts that a run through `packs` needs and that are not there, as stretches of packs."""
        starts = range(packs.start // PART_PACKS * PART_PACKS, packs.stop, PART_PACKS)
        wanted = [range(start, min(start + PART_PACKS, packs.stop)) for start in starts]
        return [one for one in wanted if self._named(one.start)[0] < one.stop]

    def publish(self, packs: range, rows: Sequence[Sequence[Any]]) -> None:
        """Write a part: the pairs of a stretch of packs that begins where parts do."""
        data = table_bytes(pl.DataFrame(sorted(rows), schema=dict(COLUMNS), orient="row"), SCHEMA)
        self.store.put(f"{self.path}/packs-{packs.start:08d}-{packs.stop:08d}-{sha256_hex(data)[:8]}.parquet", data)

    def refresh(self) -> None:
        """Look again at what is there, after parts were published."""
        self._parts = None

    def of(self, places: PairPlaces) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the log-probabilities (P, 2) of pairs, NaN where there is none, and how many ids they sum (P, 2).

        Raises ManifestError where no part holds one of the pairs, or a part is damaged.
        """
        found = [self._row(*place) for place in zip(places.packs.tolist(), places.slots.tolist(), strict=True)]
        values = np.array([[np.nan if one is None else one for one in row[:2]] for row in found], np.float64)
        return values.reshape(-1, 2), np.array([row[2:] for row in found], np.int64).reshape(-1, 2)

    def _row(self, pack: int, slot: int) -> Row:
        end, name = self._named(pack // PART_PACKS * PART_PACKS)
        row = self._table(name).get((pack, slot)) if pack < end else None
        if row is None:
            raise ManifestError(
                f"{self.path}: no reference for the pair of pack {pack}, slot {slot}; start the run anew"
            )
        return row

    def _named(self, start: int) -> tuple[int, str]:
        """Return the pack behind the last of the part that begins at one, and its name; (0, "") where there is none."""
        if self._parts is None:
            self._parts = {}
            for entry in self.store.files(self.path):
                name = entry.path.rpartition("/")[2]
                if match := _NAME.fullmatch(name):  # of several the longest, and of these the first by name
                    first, end = int(match[1]), int(match[2])
                    if end > self._parts.get(first, (0, ""))[0]:
                        self._parts[first] = (end, name)
        return self._parts.get(start, (0, ""))

    def _table(self, name: str) -> dict[tuple[int, int], Row]:
        if name not in self._tables:
            frame = open_named_table(self.store, f"{self.path}/{name}").frame(COLUMNS)
            self._tables[name] = {(row[0], row[1]): row[2:] for row in frame.iter_rows()}
            while len(self._tables) > _TABLES_KEPT:
                self._tables.popitem(last=False)
        self._tables.move_to_end(name)
        return self._tables[name]
