"""MosaicML Streaming: MDS shards, a sample as one field of bytes; as a stream, or by number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.loader_peers.archives import packed_bytes, samples, unpacked
from benchmarks.loader_peers.packing import Sample

DISTRIBUTION = "mosaicml-streaming"
SETTINGS = {
    "by number (LocalDataset)": "local",
    "a stream, in order": "stream",
    "a stream, shuffled (py1e)": "shuffled",
}


def write(source: Path, folder: Path) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(folder / "shards"), columns={"sample": "bytes"}, size_limit=2**26) as writer:
        for text, codes in samples(source):
            writer.write({"sample": packed_bytes(text, codes)})


class Streamed:
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Sample]:
        return (unpacked(row["sample"]) for row in self.dataset)


class Local:
    """Samples by their number, every worker its own part."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Sample]:
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        length = len(self.dataset)
        for place in range(length * first // step, length * (first + 1) // step):
            yield unpacked(self.dataset[place]["sample"])


def open_samples(folder: Path, setting: str) -> Iterable[Sample]:
    from streaming import LocalDataset, StreamingDataset

    local = str(folder / "shards")
    if SETTINGS[setting] == "local":
        return Local(LocalDataset(local))
    return Streamed(StreamingDataset(local=local, batch_size=1, shuffle=SETTINGS[setting] == "shuffled"))
