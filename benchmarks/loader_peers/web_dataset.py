"""webdataset: tokenmill's own archives, read from front to end, the JSON left as bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.loader_peers.archives import archives, array
from benchmarks.loader_peers.packing import Sample

DISTRIBUTION = "webdataset"
SETTINGS = {"in order": {}, "only the arrays kept": {"select_files": lambda name: name.endswith(".npy")}}


def write(source: Path, folder: Path) -> None:
    """Nothing: the archives are read as they are."""


class Samples:
    def __init__(self, source: Path, options: dict[str, Any]) -> None:
        import webdataset

        self.dataset = webdataset.WebDataset(
            [str(archive) for archive in archives(source)], shardshuffle=False, empty_check=False, **options
        )

    def __iter__(self) -> Iterator[Sample]:
        return ((array(sample["text.npy"]), array(sample["codes.npy"])) for sample in self.dataset)


def open_samples(folder: Path, setting: str) -> Iterable[Sample]:
    return Samples(folder.parent / "source", SETTINGS[setting])
