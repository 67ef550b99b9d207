"""One window of a plan in memory: its two tables as arrays, names as codes.

A loader goes through 10^5 documents a second: it takes columns, and no object is made for a document unless somebody
asks for one. A document takes 40 bytes here.

N documents, P packs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Placed:
    """One document, or piece of one, in its place in a pack: a row of the plan."""

    source: str
    shard: str
    sample: int
    repetition: int
    frame: int
    frames: int
    start: int
    length: int
    template: str
    variant: int
    weight: float


@dataclass(frozen=True, slots=True)
class PackCost:
    """What one pack costs and weighs."""

    tokens: int
    squares: int
    weight: float

    def cost(self, attention_share: float) -> float:
        """Give a·tokens + b·Σ len² in units of one token; `attention_share` is b ÷ a, a property of the model."""
        return self.tokens + attention_share * self.squares


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRows:
    """What P packs hold and cost: documents, tokens, squares int64 (P,), weight float64 (P,)."""

    documents: NDArray[np.int64]
    tokens: NDArray[np.int64]
    squares: NDArray[np.int64]
    weight: NDArray[np.float64]

    @classmethod
    def of(cls, table: pl.DataFrame) -> PackRows:
        whole = table.select(pl.col("documents", "tokens", "squares").cast(pl.Int64), pl.col("weight").cast(pl.Float64))
        return cls(**{name: whole[name].to_numpy() for name in whole.columns})

    @classmethod
    def joined(cls, parts: Sequence[PackRows]) -> PackRows:
        """Put the packs of several windows behind one another."""
        if len(parts) == 1:
            return parts[0]
        columns = ("documents", "tokens", "squares", "weight")
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in columns})

    def taken(self, start: int, stop: int) -> PackRows:
        """Give packs [start, stop), without a copy."""
        here = slice(start, stop)
        return PackRows(documents=self.documents[here], tokens=self.tokens[here], squares=self.squares[here],
                        weight=self.weight[here])  # fmt: skip

    def cost(self, pack: int) -> PackCost:
        return PackCost(int(self.tokens[pack]), int(self.squares[pack]), float(self.weight[pack]))


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRows:
    """N documents in the order of the packs: int32 (N,) each, `weight` float32 (N,).

    `source`, `shard` and `template` are places in the names beside them.
    """

    sources: tuple[str, ...]
    shards: tuple[str, ...]
    templates: tuple[str, ...]
    source: NDArray[np.int32]
    shard: NDArray[np.int32]
    template: NDArray[np.int32]
    sample: NDArray[np.int32]
    repetition: NDArray[np.int32]
    frame: NDArray[np.int32]
    frames: NDArray[np.int32]
    start: NDArray[np.int32]
    length: NDArray[np.int32]
    variant: NDArray[np.int32]
    weight: NDArray[np.float32]

    @classmethod
    def of(cls, table: pl.DataFrame) -> DocumentRows:
        """Take a window's table; names may be strings or encoded."""
        columns: dict[str, Any] = {"weight": table["weight"].cast(pl.Float32).to_numpy()}
        for name in ("source", "shard", "template"):
            columns[name], columns[f"{name}s"] = _encoded(table[name])
        for name in ("sample", "repetition", "frame", "frames", "start", "length", "variant"):
            columns[name] = table[name].cast(pl.Int32).to_numpy()
        return cls(**columns)

    def __len__(self) -> int:
        return len(self.sample)

    def taken(self, start: int, stop: int) -> DocumentRows:
        """Give documents [start, stop), without a copy."""
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        cut: dict[str, Any] = {
            name: one if isinstance(one, tuple) else one[start:stop] for name, one in columns.items()
        }
        return DocumentRows(**cut)

    def placed(self, row: int) -> Placed:
        """Give one document as an object."""
        return Placed(
            source=self.sources[self.source[row]],
            shard=self.shards[self.shard[row]],
            sample=int(self.sample[row]),
            repetition=int(self.repetition[row]),
            frame=int(self.frame[row]),
            frames=int(self.frames[row]),
            start=int(self.start[row]),
            length=int(self.length[row]),
            template=self.templates[self.template[row]],
            variant=int(self.variant[row]),
            weight=float(self.weight[row]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanWindow:
    """One window: packs first_pack, first_pack + 1 … of the plan.

    `rows` int64 (P + 1,): documents of pack first_pack + p are [rows[p], rows[p + 1]).
    """

    first_pack: int
    packs: PackRows
    documents: DocumentRows
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, documents: pl.DataFrame, packs: pl.DataFrame, first_pack: int) -> PlanWindow:
        rows = PackRows.of(packs)
        ends = np.concatenate([[0], np.cumsum(rows.documents)])
        return cls(first_pack=first_pack, packs=rows, documents=DocumentRows.of(documents), rows=ends)

    @property
    def end_pack(self) -> int:
        """The first pack behind the window."""
        return self.first_pack + len(self.packs.tokens)

    def documents_of(self, pack: int) -> list[Placed]:
        """Return the documents of a pack, numbered in the window."""
        return [self.documents.placed(row) for row in range(self.rows[pack], self.rows[pack + 1])]


def _encoded(column: pl.Series) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Give a column of names as places in a tuple of its distinct names."""
    codes = column.cast(pl.Categorical).to_physical().to_numpy()
    _, first, places = np.unique(codes, return_index=True, return_inverse=True)
    return places.astype(np.int32), tuple(column.cast(pl.String).gather(first).to_list())
