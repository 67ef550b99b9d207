"""The same stars for more rows than fit into memory: segments on disk, compared two at a time.

Rows are laid out in segments in order of preference. Segment s is compared with what was kept of every better segment
(s independent parts), then what is left of it is settled in memory (one part). So memory is that of two segments
whatever the number of rows, the result is that of all in memory, and a folder that all workers see is the only thing
they share. The price: with S segments, S²/2 comparisons of a segment with another; on few machines take large segments.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.filters.parts import MapParts
from tokenmill.filters.stars import NOBODY, Neighbours, Positions, settle

Columns = Mapping[str, NDArray[Any]]  # name -> one entry a row
OpenRows = Callable[[Columns], Neighbours]


def segmented_leaders(
    columns: Columns,
    *,
    open_rows: OpenRows,
    rows_at_once: int,
    workspace: Path,
    map_parts: MapParts,
    prepare: Callable[[Columns], Columns] | None = None,
) -> Positions:
    """Return for each row the kept one that stands for it, as a memory map of a file in the workspace.

    Args:
        columns: in order of preference; memory maps will do.
        open_rows: makes comparable rows of columns; picklable, as `prepare`.
        rows_at_once: rows of a segment.
        workspace: an empty folder.
        map_parts: who does the parts.
        prepare: columns to add to those of a segment, a pure function of each row.

    Raises:
        ValueError: the workspace holds files already.
    """
    workspace.mkdir(parents=True, exist_ok=True)
    if any(workspace.iterdir()):
        raise ValueError(f"workspace {workspace} is not empty; near copies need a folder of their own")
    num_rows = len(next(iter(columns.values())))
    segments = Segments(
        folder=workspace,
        bounds=(*range(0, num_rows, rows_at_once), num_rows),
        open_rows=open_rows,
        prepare=prepare,
    )
    segments.lay_out(columns)
    if prepare is not None:
        _each(map_parts(segments.prepare_one, range(segments.count)))
    leaders = np.lib.format.open_memmap(workspace / "leaders.npy", mode="w+", dtype=np.int64, shape=(num_rows,))
    for segment in range(segments.count):
        if segment:
            _each(map_parts(segments.compare, [(segment, better) for better in range(segment)]))
        _each(map_parts(segments.settle_one, [segment]))
        leaders[segments.bounds[segment] : segments.bounds[segment + 1]] = segments.read("leaders", segment)["of"]
    leaders.flush()
    return leaders


def first_of(better: Columns, rows: Columns, open_rows: OpenRows) -> Positions:
    """Return for each row the first of other, better rows that is near, by its place among them; or `NOBODY`."""
    num_better, num_rows = (len(next(iter(columns.values()))) for columns in (better, rows))
    neighbours = open_rows({name: np.concatenate([better[name], rows[name]]) for name in better})
    comparable = neighbours.comparable()
    queries = comparable[comparable >= num_better]
    firsts = np.full(num_rows, NOBODY)
    firsts[queries - num_better] = neighbours.first(queries, comparable[comparable < num_better])
    return firsts


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """Segments in a folder, one file a column; what is done with one of them is a part, and small enough to send."""

    folder: Path
    bounds: tuple[int, ...]
    open_rows: OpenRows
    prepare: Callable[[Columns], Columns] | None

    @property
    def count(self) -> int:
        return len(self.bounds) - 1

    def lay_out(self, columns: Columns) -> None:
        """Write the rows of every segment."""
        for segment in range(self.count):
            rows = slice(self.bounds[segment], self.bounds[segment + 1])
            self.write("rows", segment, {name: column[rows] for name, column in columns.items()})

    def prepare_one(self, segment: int) -> int:
        """Add the columns that are computed once a row."""
        assert self.prepare is not None
        self.write("rows", segment, self.prepare(self.read("rows", segment)))
        return segment

    def compare(self, part: tuple[int, int]) -> tuple[int, int]:
        """Find for each row of a segment the first near row that was kept of a better one."""
        segment, better = part
        kept, rows = self.read("kept", better), self.read("rows", segment)
        positions = kept.pop("position")
        found = first_of(kept, rows, self.open_rows)
        near = np.flatnonzero(found != NOBODY)
        self.write(f"found-{better}", segment, {"row": near, "of": positions[found[near]]})
        return part

    def settle_one(self, segment: int) -> int:
        """Settle what no better segment stands for, and write who leads whom and what is kept."""
        rows = self.read("rows", segment)
        start, stop = self.bounds[segment], self.bounds[segment + 1]
        leaders = np.arange(start, stop)
        for better in reversed(range(segment)):  # the best one last: it counts
            pairs = self.read(f"found-{better}", segment)
            leaders[pairs["row"]] = pairs["of"]
        neighbours = self.open_rows(rows)
        left = neighbours.comparable()
        left = left[leaders[left] == left + start]
        local = np.arange(stop - start)
        settle(neighbours, left, local)
        leaders[left] = local[left] + start
        kept = np.flatnonzero(leaders == np.arange(start, stop))
        self.write("leaders", segment, {"of": leaders})
        self.write("kept", segment, {name: column[kept] for name, column in rows.items()} | {"position": kept + start})
        return segment

    def write(self, kind: str, segment: int, columns: Columns) -> None:
        """Write columns, each as a whole or not at all."""
        for name, column in columns.items():
            path = self._path(kind, segment, name)
            partial = path.with_suffix(f".{os.getpid()}-{uuid.uuid4().hex}.part")
            with partial.open("wb") as file:
                np.save(file, column, allow_pickle=False)
            partial.replace(path)

    def read(self, kind: str, segment: int) -> dict[str, NDArray[Any]]:
        """Read all columns of a segment into memory."""
        paths = sorted(self.folder.glob(f"{kind}.{segment:06d}.*.npy"))
        return {path.name.split(".")[2]: np.load(path, allow_pickle=False) for path in paths}

    def _path(self, kind: str, segment: int, name: str) -> Path:
        return self.folder / f"{kind}.{segment:06d}.{name}.npy"


def _each(results: Iterator[Any]) -> None:
    for _ in results:
        pass
