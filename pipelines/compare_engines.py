"""The engines that look for near copies, and where they and the reading of slices work: here, or on a pool."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.pipelines.compare_kinds import Positions
from tokenmill.pipelines.execution_threads import available_cpus
from tokenmill.pipelines.parts import MapInOrder, RayParts, map_here
from tokenmill.pipelines.pools import is_worth_a_pool, stage_pool
from tokenmill.pipelines.reading import ordered_map
from tokenmill.recipe import Execution


@dataclass(frozen=True, kw_only=True)
class Engines:
    """How a comparison is worked on; nothing of it changes the outcome.

    Attributes:
        map_parts: reads slices, anywhere.
        map_files: does parts that find each other's files in the workspace: anywhere, if all machines see it.
        workspace: a folder for what does not fit into memory (None: a temporary one of this machine).
    """

    map_parts: MapInOrder = map_here
    map_files: MapInOrder = map_here
    workspace: Path | None = None

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Give an empty folder, gone at the end."""
        if self.workspace is not None:
            self.workspace.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="tokenmill-compare-", dir=self.workspace) as path:
            yield Path(path)

    def near_pictures(self, hashes: NDArray[np.uint64], max_distance: int, folder: Path) -> Positions:
        """Return the leader of each perceptual hash, in order of preference."""
        from tokenmill.filters.near_hashes import hash_leaders

        threads = available_cpus()
        return hash_leaders(
            hashes, max_distance=max_distance, map_parts=self.map_files, workspace=folder, threads=threads
        )

    def near_vectors(self, vectors: NDArray[Any], min_cosine: float, folder: Path) -> Positions:
        """Return the leader of each vector, in order of preference."""
        from tokenmill.filters.near_vectors import vector_leaders

        if not len(vectors):
            return np.empty(0, np.int64)
        threads = available_cpus()
        return vector_leaders(
            vectors, min_cosine=min_cosine, map_parts=self.map_files, workspace=folder, threads=threads
        )

    def near_texts(self, signatures: NDArray[Any], min_jaccard: float, folder: Path) -> Positions:
        """Return the leader of each MinHash signature, in order of preference."""
        from tokenmill.filters.near_texts import text_leaders

        if not len(signatures):
            return np.empty(0, np.int64)
        threads = available_cpus()
        return text_leaders(
            signatures, min_jaccard=min_jaccard, map_parts=self.map_files, workspace=folder, threads=threads
        )


def engines_of(run: Execution, stage: str, num_rows: int) -> Engines:
    """Return how a recipe works on a comparison of so many samples."""
    workspace = Path(run.workspace).expanduser() if run.workspace else None
    if not is_worth_a_pool(run, stage, num_rows):
        threads = available_cpus() + 1  # reading waits for the store, and lets the interpreter go
        return Engines(map_parts=partial(ordered_map, threads=threads, window=4 * threads), workspace=workspace)
    pool = RayParts(pool=stage_pool(run, stage), tries=run.tries, start_timeout_s=run.start_timeout_s)
    # A cluster started here is this machine alone; the nodes of another one may see no folder of ours.
    everywhere = workspace is not None or not (run.address or os.environ.get("RAY_ADDRESS"))
    return Engines(map_parts=pool, map_files=pool if everywhere else map_here, workspace=workspace)
