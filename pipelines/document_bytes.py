"""The bytes of documents: each one's JSON and pictures, read in the order in which they lie in their file.

In a shard they are neighbours, so some hundred documents come with one ranged read, whichever of them stands first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from tokenmill.manifests.storage import Store
from tokenmill.pipelines.reading import Place, read_places

DocumentBytes = tuple[bytes, list[bytes]]  # the JSON, and the pictures by their numbers


def document_bytes(store: Store, rows: pl.DataFrame, archive: str | None) -> Iterator[DocumentBytes]:
    """Yield the bytes of every row of an index of documents; `archive`: the file that all of them were packed into."""
    described = rows.select("path", "offset", "length", "pictures").to_dicts()
    orders, places = [], list[Place]()
    for row in described:
        own = [_place(row, archive), *(_place(picture, archive) for picture in row["pictures"] or ())]
        order = [number for _, _, number in sorted((at.path, at.offset, number) for number, at in enumerate(own))]
        orders.append(order)
        places += [own[number] for number in order]
    found = read_places(store, places)
    for order in orders:
        by_number = {number: next(found) for number in order}
        yield by_number[0], [by_number[number] for number in range(1, len(order))]


def raw_bytes(rows: pl.DataFrame) -> pl.Series:
    """Return the encoded bytes of every row of an index, a document's pictures included."""
    if "pictures" not in rows.columns:
        return rows["length"]
    pictures = pl.col("pictures").list.eval(pl.element().struct.field("length")).list.sum()
    return rows.select((pl.col("length") + pictures.fill_null(0)).alias("bytes")).to_series()


def _place(told: Mapping[str, Any], archive: str | None) -> Place:
    return Place(told["path"] if archive is None else archive, told["offset"], told["length"])
