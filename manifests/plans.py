"""Plans: the order of training as files. This is the reading side; `pipelines/plan.py` writes them.

`plans/<phase>/<plan>/` is a stage folder whose units are windows. On top of the usual records and snapshot it holds
`windows.parquet` (which packs each window has, and its two tables), `shards.parquet` (where the shards' indexes are)
and `plan.json`, written last. A reader needs these three and lists nothing: opening a plan of 1,000 windows costs three
reads, seeking to any pack two more.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import polars as pl

from tokenmill.errors import ManifestError, StorageError
from tokenmill.manifests.identity import digest_of, sha256_hex, short
from tokenmill.manifests.named_tables import open_named_table
from tokenmill.manifests.plan_rows import PackCost, PackRows, Placed, PlanWindow
from tokenmill.manifests.records import check_schema
from tokenmill.manifests.stagedir import StageDir, parse_table, stage_dir_at
from tokenmill.manifests.storage import Store

PLAN_SCHEMA = 1
_WINDOWS_KEPT = 4  # tables in memory: the one being read, its neighbours, and one that a seek left behind

DOCUMENT_COLUMNS: Mapping[str, Any] = {
    "pack": pl.Int32,  # within the window
    "slot": pl.Int32,  # within the pack
    "source": pl.Categorical,
    "shard": pl.Categorical,  # the archive, relative to the root
    "sample": pl.Int32,  # row of the shard's index
    "repetition": pl.Int32,  # how often this sample was taken before
    "frame": pl.Int32,  # first latent frame taken, of a split clip
    "frames": pl.Int32,  # latent frames taken; 0 = the whole document
    "start": pl.Int32,  # first id of the piece
    "length": pl.Int32,  # ids of the piece
    "template": pl.Categorical,
    "variant": pl.Int32,
    "weight": pl.Float32,  # sum of the loss weights of its ids
}
PACK_COLUMNS: Mapping[str, Any] = {
    "pack": pl.Int32,
    "documents": pl.Int32,
    "tokens": pl.Int64,
    "squares": pl.Int64,  # sum of length² over its documents: what attention costs
    "weight": pl.Float64,
}
DROPPED_COLUMNS: Mapping[str, Any] = {
    "source": pl.String,
    "shard": pl.String,
    "sample": pl.Int32,
    "key": pl.String,
    "reason": pl.String,
    "message": pl.String,
}
_READ = [name for name in DOCUMENT_COLUMNS if name not in ("pack", "slot")]
WINDOW_COLUMNS: Mapping[str, Any] = {
    "unit": pl.String,
    "first_pack": pl.Int64,
    "num_packs": pl.Int64,
    "documents": pl.String,
    "packs": pl.String,
}
SHARD_COLUMNS: Mapping[str, Any] = {
    "source": pl.String,
    "shard": pl.String,
    "index": pl.String,
    "shard_sha256": pl.String,
    "index_sha256": pl.String,
}
EPOCH_COLUMNS: Mapping[str, Any] = {  # beside those of the shards
    "epochs": pl.Float64,  # how often the plan, with those it continues, goes through it
    "begun": pl.Float64,  # how often one of them meant to; more than `epochs` where the mix was lowered since
}


@dataclass(frozen=True)
class Plan:
    """An opened plan; packs are numbered 0 .. num_packs-1 over all windows. Safe to read from several threads."""

    folder: StageDir
    description: Mapping[str, Any]
    windows: pl.DataFrame
    shards: pl.DataFrame
    _tables: OrderedDict[int, PlanWindow] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def plan_id(self) -> str:
        return self.folder.config.digest

    @property
    def phase(self) -> str:
        return str(self.description["phase"])

    @property
    def context(self) -> int:
        return int(self.description["context"])

    @property
    def num_packs(self) -> int:
        return int(self.description["num_packs"])

    @cached_property
    def index_of(self) -> dict[str, str]:
        """Shard → its index, both relative to the root."""
        return dict(zip(self.shards["shard"], self.shards["index"], strict=True))

    @cached_property
    def _first_packs(self) -> list[int]:
        return self.windows["first_pack"].to_list()

    def documents(self, pack: int) -> list[Placed]:
        """Return a pack's documents in the order of their slots; raises IndexError outside the plan."""
        window = self.window_of(pack)
        return window.documents_of(pack - window.first_pack)

    def cost(self, pack: int) -> PackCost:
        """Return what a pack costs and weighs."""
        window = self.window_of(pack)
        return window.packs.cost(pack - window.first_pack)

    def costs(self, start: int, stop: int) -> PackRows:
        """Return what packs [start, stop) hold, cost and weigh, as arrays; raises IndexError outside the plan."""
        parts = []
        while start < stop:
            window = self.window_of(start)
            end = min(stop, window.end_pack)
            parts.append(window.packs.taken(start - window.first_pack, end - window.first_pack))
            start = end
        return PackRows.joined(parts)

    def window_of(self, pack: int) -> PlanWindow:
        """Return the window that a pack stands in, the last few of which are kept; raises IndexError."""
        if not 0 <= pack < self.num_packs:
            raise IndexError(f"pack {pack} of a plan of {self.num_packs}")
        number = bisect_right(self._first_packs, pack) - 1
        with self._lock:
            if number not in self._tables:
                self._tables[number] = self._read_window(number)
                while len(self._tables) > _WINDOWS_KEPT:
                    self._tables.popitem(last=False)
            self._tables.move_to_end(number)
            return self._tables[number]

    def windows_kept(self) -> list[PlanWindow]:
        """Return what is in memory."""
        with self._lock:
            return list(self._tables.values())

    def _read_window(self, number: int) -> PlanWindow:
        row = self.windows.row(number, named=True)
        store = self.folder.store
        documents = read_named_table(store, self.folder.at(row["documents"]), _READ)
        packs = read_named_table(store, self.folder.at(row["packs"]))
        if len(packs) != row["num_packs"] or int(packs["documents"].sum()) != len(documents):
            raise ManifestError(f"{self.folder.at(row['packs'])}: not the packs that windows.parquet names")
        return PlanWindow.of(documents, packs, row["first_pack"])


def open_plan(store: Store, path: str) -> Plan:
    """Open the plan in a folder; raises ManifestError if it is none, unfinished, or its tables were changed."""
    folder = stage_dir_at(store, path)
    name = folder.at("plan.json")
    try:
        description = json.loads(store.read_bytes(name))
        check_schema(description["schema"], PLAN_SCHEMA, name)
        digest = description.pop("digest")
    except StorageError as error:
        raise ManifestError(f'{path}: no finished plan there; run "tokenmill plan"') from error
    except (ValueError, KeyError) as error:
        raise ManifestError(f"{name}: not a plan ({error})") from error
    if digest != digest_of(description):
        raise ManifestError(f"{name}: was changed after it was written; remove it and plan again")
    if description["plan"] != folder.config.digest:
        raise ManifestError(f"{name}: describes plan {short(description['plan'])}, not this folder's")
    tables = {}
    for table, sha256 in description["tables"].items():
        data = store.read_bytes(folder.at(table))
        if sha256_hex(data) != sha256:
            raise ManifestError(f"{folder.at(table)}: sha256 differs from plan.json; remove it and plan again")
        tables[table] = parse_table(data)
    return Plan(folder, description, tables["windows.parquet"], tables["shards.parquet"])


def read_named_table(store: Store, path: str, columns: Iterable[str] | None = None) -> pl.DataFrame:
    """Read a table whose name carries 8 digits of its SHA-256; raises ManifestError naming it when they differ."""
    return open_named_table(store, path).frame(columns)


def plan_paths(store: Store, phase: str) -> list[str]:
    """Return the folders of every finished plan of a phase, sorted."""
    names = [f"plans/{phase}/{name}" for name in store.folders(f"plans/{phase}")]
    return [name for name in names if store.exists(f"{name}/plan.json")]
