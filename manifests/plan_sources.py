"""From packs of a plan back to where their documents come from: keys, shards, URLs, licences.

The plan's row names a shard and a row of its index; the index names the key and where the sample's JSON lies, which
holds the metadata that the source gave. One read of an index for each shard, and ranged reads of the JSON members.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import polars as pl

from tokenmill.errors import ManifestError, StorageError
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.stagedir import read_table, stage_dir_at
from tokenmill.manifests.takedowns import urls_of

SOURCE_COLUMNS: Mapping[str, Any] = {
    "pack": pl.Int64,  # over all windows
    "slot": pl.Int32,
    "source": pl.String,
    "key": pl.String,
    "urls": pl.List(pl.String),
    "licence": pl.String,
    "template": pl.String,
    "repetition": pl.Int32,
    "start": pl.Int32,  # first id of the piece
    "length": pl.Int32,
    "shard": pl.String,
    "sample": pl.Int32,
    "fault": pl.String,  # why key, URL or licence could not be read
}
_THREADS = 8
_LICENCES = ("licence", "license")
_UNREADABLE = (ManifestError, StorageError, ValueError)


def sources_of_packs(plan: Plan, packs: Sequence[int]) -> pl.DataFrame:
    """Return a row for every document of some packs, in their order; raises IndexError for a pack outside the plan."""
    placed = [(pack, slot, document) for pack in packs for slot, document in enumerate(plan.documents(pack))]
    wanted: dict[str, set[int]] = defaultdict(set)
    for _, _, document in placed:
        wanted[document.shard].add(document.sample)
    digests = dict(plan.shards.select(pl.col("shard").cast(pl.String), "index_sha256").rows())
    with ThreadPoolExecutor(_THREADS) as pool:
        read = pool.map(partial(_shard, plan), wanted, wanted.values(), map(digests.get, wanted))
        found = dict(zip(wanted, read, strict=True))
    licences = {source: _licence_of(plan, source) for source in {document.source for _, _, document in placed}}
    rows = []
    for pack, slot, document in placed:
        key, urls, licence, fault = found[document.shard][document.sample]
        licence = licence or licences[document.source]
        rows.append((pack, slot, document.source, key, urls, licence, document.template, document.repetition,
                     document.start, document.length, document.shard, document.sample, fault))  # fmt: skip
    return pl.DataFrame(rows, schema=dict(SOURCE_COLUMNS), orient="row")


_Known = tuple[str | None, list[str], str | None, str | None]


def _shard(plan: Plan, shard: str, samples: set[int], digest: str | None) -> dict[int, _Known]:
    """Return key, URLs, licence and fault of some samples of a shard; another index than planned with is a fault."""
    store = plan.folder.store
    try:
        index = read_table(store, plan.index_of[shard], sha256=digest)
    except (ManifestError, StorageError, KeyError) as error:
        return dict.fromkeys(samples, (None, [], None, str(error)))
    there = sorted(sample for sample in samples if 0 <= sample < len(index))
    rows = [index.row(sample, named=True) for sample in there]
    absent: _Known = (None, [], None, f"not a row of its index, which has {len(index)}")
    found = dict.fromkeys(samples, absent)
    for sample, row, member in zip(there, rows, _members(plan, shard, rows), strict=True):
        found[sample] = _known(row, member)
    return found


def _members(plan: Plan, shard: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[bytes | Exception]:
    """Yield the JSON member of each row; a row without one gives no bytes."""
    ranges = [(row.get("json_offset") or 0, row.get("json_length") or 0) for row in rows]
    try:
        yield from plan.folder.store.read_ranges(shard, ranges)
    except StorageError as error:
        yield from [error] * len(rows)


def _known(row: Mapping[str, Any], member: bytes | Exception) -> _Known:
    if isinstance(member, Exception):
        return row["key"], [], None, str(member)
    try:
        value = json.loads(member) if member else {}
        if not isinstance(value, dict):
            raise ValueError("its JSON is no object")
    except ValueError as error:
        return row["key"], [], None, f"its JSON cannot be read ({error})"
    return row["key"], list(dict.fromkeys(urls_of(value))), _licence(value), None


def _licence_of(plan: Plan, source: str) -> str | None:
    """Return what the folder of a source's tokens says of all its samples."""
    try:
        folder = stage_dir_at(plan.folder.store, plan.description["sources"][source]["folder"])
    except (ManifestError, KeyError):
        return None
    return folder.config.settings.get("licence") or None


def _licence(value: Mapping[str, Any]) -> str | None:
    """Return the sample's licence, of its own metadata before that of its source."""
    metadata = value.get("metadata")
    for part in (metadata if isinstance(metadata, Mapping) else {}, value):
        for name, one in part.items():
            if name.lower() in _LICENCES and isinstance(one, str) and one:
                return one
    return None
