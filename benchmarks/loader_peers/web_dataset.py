"""webdataset: tokenmill's own archives, the JSON passed over, or tars of one member a sample; from front to end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.loader_peers.archives import MEMBER, archives, array, unpacked, write_tars
from benchmarks.loader_peers.packing import Sample

DISTRIBUTION = "webdataset"
SETTINGS = {"one member a sample": "tars", "tokenmill's archives, arrays only": "archives"}


def write(source: Path, folder: Path) -> None:
    write_tars(source, folder)


class Samples:
    def __init__(self, folder: Path, form: str) -> None:
        import webdataset

        self.form = form
        wanted = {"select_files": _is_array} if form == "archives" else {}
        urls = [str(archive) for archive in archives(folder)]
        self.dataset = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False, **wanted)

    def __iter__(self) -> Iterator[Sample]:
        if self.form == "archives":
            return ((array(sample["text.npy"]), array(sample["codes.npy"])) for sample in self.dataset)
        return (unpacked(sample[MEMBER]) for sample in self.dataset)


def _is_array(name: str) -> bool:
    return name.endswith(".npy")


def open_samples(folder: Path, setting: str) -> Iterable[Sample]:
    form = SETTINGS[setting]
    return Samples(folder.parent / "source" if form == "archives" else folder, form)
