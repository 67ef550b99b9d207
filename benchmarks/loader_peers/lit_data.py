"""litData: its binary chunks, local, a sample as one field of bytes or as two arrays without headers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.loader_peers.archives import packed_bytes, samples, unpacked
from benchmarks.loader_peers.packing import Sample

DISTRIBUTION = "litdata"
CHUNK_BYTES = "64MB"
SETTINGS = {
    "bytes, in order": {"form": "bytes"},
    "bytes, in order, whole chunks decoded": {"form": "bytes", "batch_decode": "all"},
    "bytes, in order, each decoded alone": {"form": "bytes", "batch_decode": False},
    "arrays, in order": {"form": "arrays"},
    "bytes, shuffled in blocks of 256": {"form": "bytes", "shuffle": True},
    "bytes, full shuffle": {"form": "bytes", "shuffle": True, "item_shuffle_window": 0, "batch_decode": False},
}


def write(source: Path, folder: Path) -> None:
    from litdata.streaming import Cache

    for form in ("bytes", "arrays"):
        cache = Cache(str(folder / form), chunk_bytes=CHUNK_BYTES)
        for number, (text, codes) in enumerate(samples(source)):
            cache[number] = packed_bytes(text, codes) if form == "bytes" else [text, codes]
        cache.done()
        cache.merge()


class Samples:
    """Samples of a StreamingDataset, which shares itself out among a DataLoader's workers."""

    def __init__(self, folder: Path, form: str, options: dict[str, Any]) -> None:
        from litdata import StreamingDataset

        self.dataset = StreamingDataset(str(folder / form), **options)
        self.form = form

    def __iter__(self) -> Any:
        return map(unpacked if self.form == "bytes" else tuple, self.dataset)


def open_samples(folder: Path, setting: str) -> Iterable[Sample]:
    options = dict(SETTINGS[setting])
    return Samples(folder, options.pop("form"), options)
