"""Which samples are copies of which, exactly (digest) or nearly (64-bit perceptual hash within d bits).

A group is a star and not a connected component (`stars.py`): every dropped sample lies within d bits of the *kept* one
it names. Who survives is greedy in order of preference: what an earlier snapshot kept, then more pixels, then source
and key. So the outcome doesn't depend on the order of rows, and appending data never drops what was kept before.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

Nodes = NDArray[np.int64]  # positions in order of preference: a smaller number is preferred


def find_duplicates(samples: pl.DataFrame, *, max_distance: int) -> pl.DataFrame:
    """Decide which rows of `samples` to drop.

    Args:
        samples: one row a sample: `key` (unique within `source`), `source` (its place in the recipe), `digest` (any
            type), `phash` (UInt64), `pixels`, `kept_before` (bool). Null digests and null hashes equal nothing.
        max_distance: bits within which two hashes are near copies, 0 to 16.

    Returns:
        The dropped rows: `row`, `reason` (`exact_duplicate`, `near_duplicate`), `of` (the kept row it is a copy of).

    Raises:
        ValueError: the distance is out of range.
    """
    ranked = _by_preference(samples)
    of = exact_leaders(ranked["digest"])
    of = _near_leaders_of_rows(ranked["phash"], of, max_distance)[of]
    dropped = np.flatnonzero(of != np.arange(len(of)))
    same = (ranked["digest"][dropped] == ranked["digest"][of[dropped]]).fill_null(False)
    rows = ranked["row"].to_numpy()
    found = pl.DataFrame({"row": rows[dropped], "same": same, "of": rows[of[dropped]]}).sort("row")
    reason = pl.when("same").then(pl.lit("exact_duplicate")).otherwise(pl.lit("near_duplicate")).alias("reason")
    return found.select("row", reason, "of")


def exact_leaders(digests: pl.Series) -> Nodes:
    """Return for each position the first one with the same digest; itself where the digest is null."""
    table = pl.DataFrame({"digest": digests}).with_row_index("position")
    first = pl.when(pl.col("digest").is_null()).then("position").otherwise(pl.col("position").min().over("digest"))
    return table.select(first.cast(pl.Int64)).to_series().to_numpy()


def _by_preference(samples: pl.DataFrame) -> pl.DataFrame:
    columns = ["kept_before", "pixels", "source", "key"]
    return samples.with_row_index("row").sort(columns, descending=[True, True, False, False], nulls_last=True)


def _near_leaders_of_rows(phash: pl.Series, of: Nodes, max_distance: int) -> Nodes:
    """Return the leader of each row that is an exact leader and has a hash; itself for all others."""
    from tokenmill.filters.near_hashes import hash_leaders

    leaders = np.arange(len(phash))
    rows = np.flatnonzero((of == leaders) & phash.is_not_null().to_numpy())
    leaders[rows] = rows[hash_leaders(phash.gather(rows).to_numpy(), max_distance=max_distance)]
    return leaders
