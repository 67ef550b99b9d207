"""Hugging Face datasets: Arrow files, mapped into memory; rows one at a time, or whole Arrow batches without a copy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loader_peers.archives import samples
from benchmarks.loader_peers.packing import Sample

DISTRIBUTION = "datasets"
BATCH = 256
SETTINGS = {
    "Arrow batches, no copy": "batches",
    "iterable, numpy format": "iterable",
    "map style, numpy format": "map",
}
_SHARDS = 16


def write(source: Path, folder: Path) -> None:
    from datasets import Dataset, Features, List, Value

    features = Features({"text": List(Value("uint32")), "codes": List(Value("uint16"))})
    rows = Dataset.from_generator(
        _rows, gen_kwargs={"source": source}, features=features, cache_dir=str(folder / "tmp")
    )
    rows.save_to_disk(str(folder / "rows"), num_shards=8)


def _rows(source: Path) -> Iterator[dict[str, Any]]:
    for text, codes in samples(source):
        yield {"text": text, "codes": codes}


def _part() -> tuple[int, int]:
    """Which worker this is, of how many."""
    from torch.utils.data import get_worker_info

    worker = get_worker_info()
    return (worker.id, worker.num_workers) if worker else (0, 1)


class Batches:
    """Samples as slices of Arrow's own buffers."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows.with_format("arrow")

    def __iter__(self) -> Iterator[Sample]:
        worker, workers = _part()
        rows = self.rows.shard(workers, worker, contiguous=True) if workers > 1 else self.rows
        for batch in rows.iter(batch_size=BATCH):
            texts, codes = (_lists(batch[name]) for name in ("text", "codes"))
            yield from zip(texts, codes, strict=True)


def _lists(column: Any) -> Iterator[np.ndarray[Any, Any]]:
    for chunk in column.chunks:
        values = chunk.values.to_numpy()
        offsets = chunk.offsets.to_numpy()
        for number in range(len(chunk)):
            yield values[offsets[number] : offsets[number + 1]]


class Rows:
    """Samples as rows of numpy arrays."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Sample]:
        return ((row["text"], row["codes"]) for row in self.rows)


class Places:
    """Samples by their number, every worker its own part."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Sample]:
        worker, workers = _part()
        length = len(self.rows)
        for place in range(length * worker // workers, length * (worker + 1) // workers):
            row = self.rows[place]
            yield row["text"], row["codes"]


def open_samples(folder: Path, setting: str) -> Iterable[Sample]:
    from datasets import load_from_disk

    rows = load_from_disk(str(folder / "rows"))
    if SETTINGS[setting] == "batches":
        return Batches(rows)
    if SETTINGS[setting] == "iterable":
        return Rows(rows.to_iterable_dataset(num_shards=_SHARDS).with_format("numpy"))
    return Places(rows.with_format("numpy"))
