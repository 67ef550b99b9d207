"""What ranks and workers would read of a plan, without reading a sample.

The loader itself runs, step by step on every rank, and stops where the bytes would be asked for: who gets which pack,
which indexes and windows are read, which stretches of which shards lie close enough for one request are its own doing.
Only the store and the source of bytes are replaced, by ones that count. Windows and indexes are really read, once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np

from tokenmill.errors import RecipeError
from tokenmill.manifests.plans import Plan, open_plan
from tokenmill.manifests.storage import Store
from tokenmill.settings_train import LoaderSettings
from tokenmill.tokenize.vocabulary import Vocabulary, build_vocabulary
from tokenmill.train.assembly import Assembler
from tokenmill.train.loader import PlanLoader
from tokenmill.train.pack_blocks import Block
from tokenmill.train.pack_slots import Slots, StepArrays
from tokenmill.train.sequence_checks import check_ranks
from tokenmill.train.shard_bytes import FILES_KEPT, ShardFile
from tokenmill.train.shard_ranges import Piece, Range, coalesce


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """How training would be run: ranks, DataLoader workers of each (0: threads), packs of a step and at once.

    `sequence_parallel` neighbouring ranks read the same packs, each all of them.
    """

    ranks: int
    workers: int
    global_packs: int
    micro_packs: int = 1
    sequence_parallel: int = 1
    attention_share: float = 0.0
    loader: LoaderSettings = field(default_factory=LoaderSettings)


@dataclass(slots=True)
class RankReads:
    """What one rank reads of shards: requests as to an object store, bytes with the gaps inside of them."""

    requests: int = 0
    bytes: int = 0
    bytes_used: int = 0
    largest_step_bytes: int = 0
    tokens: int = 0
    cost: float = 0.0
    shards: set[str] = field(default_factory=set)


def simulate(store: Store, path: str, how: Simulated, start: int, stop: int) -> dict[str, Any]:
    """Tell what steps [start, stop) of the plan at a path would read, as JSON values.

    Raises RecipeError for more ranks than packs in a step, ranks that are no groups or a range that is none,
    ManifestError or StorageError where the plan, a window or an index cannot be read.
    """
    check_ranks(how.sequence_parallel, how.ranks)
    counted = CountingStore(store.url, store.options)
    plan = open_plan(counted, path)
    counted.read.clear()
    vocabulary = build_vocabulary(plan.description["vocabulary"])
    source = CountingBytes()
    ranks = _loaders(plan, vocabulary, how, source)
    if not 0 <= start < stop:
        raise RecipeError(f"--steps {start}:{stop}: from a step to a later one, counted from 0")
    reads = [RankReads() for _ in ranks]
    memory: dict[str, int] = {}
    spreads = []
    for number in range(start, stop):
        costs = [_step(loader, number, source, read, how) for loader, read in zip(ranks, reads, strict=True)]
        spreads.append(max(costs) * len(costs) / max(sum(costs), 1e-9))
        _measure(ranks[0], memory)
    memory["fetched"] = source.largest_fetch
    memory["steps"] = _steps_bytes(ranks[0], how)
    return _told(plan, how, (start, stop), reads, counted, memory, spreads)


class CountingStore(Store):
    """A store that remembers which tables were read, how often, and their bytes."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(url, options)
        self.read: list[tuple[str, int]] = []

    def read_bytes(self, path: str) -> bytes:
        data = super().read_bytes(path)
        self.read.append((path, len(data)))
        return data


class CountingBytes:
    """A source that has no bytes, and counts what is asked of it."""

    def __init__(self) -> None:
        self.now = RankReads()
        self.step_bytes = 0
        self.largest_fetch = 0

    def file(self, shard: str) -> ShardFile | None:
        return None

    def ranges(self, shard: str, ranges: Sequence[Range]) -> list[Piece]:
        return self.fetch({shard: ranges})[shard]

    def fetch(self, wanted: Mapping[str, Sequence[Range]]) -> dict[str, list[Piece]]:
        before = self.step_bytes
        for shard, ranges in wanted.items():
            blocks = coalesce(ranges)
            read = sum(block.end - block.start for block in blocks)
            self.now.requests += len(blocks)
            self.now.bytes += read
            self.now.bytes_used += sum(length for _, length in ranges)
            self.now.shards.add(shard)
            self.step_bytes += read
        self.largest_fetch = max(self.largest_fetch, self.step_bytes - before)
        return {shard: [_NOTHING] * len(ranges) for shard, ranges in wanted.items()}

    def close(self) -> None:
        pass


_NOTHING = OSError("nothing is read in a simulation")


class _Counter(Assembler):
    """Asks for the bytes of packs, and assembles nothing."""

    def _fill(self, block: Block, low: int, slots: Slots, arrays: StepArrays) -> int:
        self._pieces.pieces(block, low, slots.table, slots.documents)
        return 0

    def held(self) -> dict[str, int]:
        """Tell the bytes of what is kept in memory: indexes, joined blocks."""
        return {
            "indexes": sum(index.num_bytes for index in self._indexes.kept()),
            "blocks": sum(_array_bytes(block, "window") for block in self._blocks.kept()),
        }


class _Loader(PlanLoader):
    """A rank whose assembler counts; all ranks share one, since each would keep the same indexes and blocks."""

    def __init__(self, plan: Plan, vocabulary: Vocabulary, counter: _Counter, **arguments: Any) -> None:
        super().__init__(plan, vocabulary, **arguments)
        self._assembler: _Counter = counter

    @property
    def counter(self) -> _Counter:
        return self._assembler

    def steps_ahead(self) -> int:
        return self._ahead()


def _loaders(plan: Plan, vocabulary: Vocabulary, how: Simulated, source: CountingBytes) -> list[_Loader]:
    counter = _Counter(plan, vocabulary, source, lambda shard: None, 1)
    shape: dict[str, Any] = {
        "global_packs": how.global_packs,
        "world": how.ranks // how.sequence_parallel,
        "micro_packs": how.micro_packs,
        "attention_share": how.attention_share,
        "threads": how.loader.threads,
        "read_ahead_steps": how.loader.read_ahead_steps,
        "read_ahead_bytes": how.loader.read_ahead_bytes,
        "source": source,
    }
    readers = [rank // how.sequence_parallel for rank in range(how.ranks)]
    return [_Loader(plan, vocabulary, counter, rank=reader, **shape) for reader in readers]


def _step(loader: _Loader, number: int, source: CountingBytes, read: RankReads, how: Simulated) -> float:
    """Have a rank ask for a step, as one or (in workers) a micro-batch at a time; returns what it costs to compute."""
    source.now, source.step_bytes = read, 0
    micro_steps: Sequence[int | None] = range(loader.micro_steps) if how.workers else [None]
    batches = [batch for only in micro_steps for batch in loader.step(number, only).micro_batches]
    cost = sum(batch.num_tokens + how.attention_share * batch.squares for batch in batches)
    read.largest_step_bytes = max(read.largest_step_bytes, source.step_bytes)
    read.tokens += sum(batch.num_tokens for batch in batches)
    read.cost += cost
    return cost


def _measure(loader: _Loader, memory: dict[str, int]) -> None:
    """Remember the most of what one process holds."""
    held = loader.counter.held()
    held["windows"] = sum(_array_bytes(window) for window in loader.plan.windows_kept())
    for name, number in held.items():
        memory[name] = max(memory.get(name, 0), number)


def _steps_bytes(loader: _Loader, how: Simulated) -> int:
    """Return the bytes of the steps that wait, are being made and are in use."""
    waiting = loader.steps_ahead() + max(1, how.loader.threads) + 1 if not how.workers else 1
    return waiting * loader.step_bytes // (loader.micro_steps if how.workers else 1)


def _array_bytes(value: Any, *without: str) -> int:
    """Add up the arrays of a dataclass and of those inside of it."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if not is_dataclass(value):
        return 0
    return sum(_array_bytes(getattr(value, one.name)) for one in fields(value) if one.name not in without)


def _told(
    plan: Plan,
    how: Simulated,
    steps: tuple[int, int],
    reads: Sequence[RankReads],
    store: CountingStore,
    memory: Mapping[str, int],
    spreads: Sequence[float],
) -> dict[str, Any]:
    processes = max(1, how.workers)  # of a rank: each of them reads the windows and indexes of what it makes
    tables = _tables(plan, store)
    ranks = [_rank(number, read) for number, read in enumerate(reads)]
    shards = set().union(*(read.shards for read in reads))
    spread = {name: _spread([rank[name] for rank in ranks]) for name in ("bytes", "requests", "cost")}
    return {
        "plan": plan.plan_id,
        "steps": list(steps),
        "ranks": how.ranks,
        "workers": how.workers,
        "global_packs": how.global_packs,
        "micro_packs": how.micro_packs,
        "samples": {
            "requests": sum(read.requests for read in reads),
            "bytes": sum(read.bytes for read in reads),
            "bytes_used": sum(read.bytes_used for read in reads),
            "shards": len(shards),
            "files_open": min(FILES_KEPT, max(len(read.shards) for read in reads)),
        },
        "tables_of_a_process": tables,
        "processes": how.ranks * processes,
        "table_bytes": how.ranks * processes * sum(one["bytes"] for one in tables.values()),
        "memory_of_a_process": {**memory, "all": sum(memory.values())},
        "memory_of_a_rank": processes * sum(memory.values()),
        "spread": {**spread, "cost_of_a_step": float(np.mean(spreads))},
        "of_ranks": ranks,
    }


def _tables(plan: Plan, store: CountingStore) -> dict[str, dict[str, int]]:
    """Tell how often windows and indexes were read, and their bytes."""
    indexes = set(plan.shards["index"])
    told = {name: {"files": 0, "reads": 0, "bytes": 0} for name in ("windows", "indexes")}
    for path, number in Counter(path for path, _ in store.read).items():
        one = told["indexes" if path in indexes else "windows"]
        one["files"], one["reads"] = one["files"] + 1, one["reads"] + number
    for path, size in store.read:
        told["indexes" if path in indexes else "windows"]["bytes"] += size
    return told


def _rank(number: int, read: RankReads) -> dict[str, Any]:
    names = ("requests", "bytes", "bytes_used", "largest_step_bytes", "tokens", "cost")
    return {"rank": number, **{name: getattr(read, name) for name in names}, "shards": len(read.shards)}


def _spread(values: Sequence[float]) -> float:
    """Return the largest by the mean."""
    return float(max(values) * len(values) / sum(values)) if sum(values) else 1.0
