"""What no loader can beat: ids from a file mapped into memory, uint16 to int64, a pack at a time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.loader_peers.archives import samples
from benchmarks.loader_peers.delivery import Epoch
from benchmarks.loader_peers.packing import CONTEXT

DISTRIBUTION = "numpy"
SETTINGS = {"threads": ThreadPoolExecutor, "processes": ProcessPoolExecutor}


def write(source: Path, folder: Path) -> None:
    """Write as many ids as the samples have, without their markers."""
    folder.mkdir(parents=True)
    with (folder / "ids.bin").open("wb") as file:
        for text, codes in samples(source):
            file.write(text.astype(np.uint16).tobytes() + codes.tobytes())


@cache
def _ids(path: Path) -> NDArray[np.uint16]:
    ids = np.memmap(path, np.uint16, "r")
    return ids[: len(ids) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)


def copy(path: Path, part: int, parts: int) -> int:
    """Copy one part of the packs; returns how many ids."""
    ids = _ids(path)
    tokens = 0
    for pack in range(len(ids) * part // parts, len(ids) * (part + 1) // parts):
        tokens += len(ids[pack].astype(np.int64))
    return tokens


def open_epoch(folder: Path, setting: str, workers: int, way: str) -> Epoch:
    path = folder / "ids.bin"
    if not workers:
        return Epoch(lambda: iter([{"num_tokens": copy(path, 0, 1)}]))
    pool: Executor
    if setting == "threads":
        pool = ThreadPoolExecutor(workers)
    else:
        pool = ProcessPoolExecutor(workers, mp_context=get_context("forkserver"))

    def parts() -> Iterator[dict[str, Any]]:
        for tokens in pool.map(copy, [path] * workers, range(workers), [workers] * workers):
            yield {"num_tokens": tokens}

    return Epoch(parts)
