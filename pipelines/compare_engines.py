"""The engines that look for near copies, and where they and the reading of slices work: here, or on a pool."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokenmill.pipelines.compare_kinds import Positions
from tokenmill.pipelines.parts import MapInOrder, RayParts, map_here
from tokenmill.pipelines.pools import stage_pool
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
        """Return the leader of each hash, in order of preference."""
        from tokenmill.filters.duplicates import near_leaders

        unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        order = np.argsort(first)
        leaders = near_leaders(unique[order], max_distance)
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        return first[order[leaders[rank[inverse]]]]

    def near_vectors(self, vectors: NDArray[np.generic], min_cosine: float, folder: Path) -> Positions:
        """Return the leader of each vector, in order of preference."""
        raise NotImplementedError

    def near_texts(self, signatures: NDArray[np.generic], min_jaccard: float, folder: Path) -> Positions:
        """Return the leader of each signature, in order of preference."""
        raise NotImplementedError


def engines_of(run: Execution, stage: str) -> Engines:
    """Return how a recipe works on a comparison."""
    workspace = Path(run.workspace).expanduser() if run.workspace else None
    if run.executor != "ray":
        return Engines(workspace=workspace)
    pool = RayParts(pool=stage_pool(run, stage), tries=run.tries)
    # A cluster started here is this machine alone; another one may see no folder of ours.
    everywhere = run.address is None or workspace is not None
    return Engines(map_parts=pool, map_files=pool if everywhere else map_here, workspace=workspace)
