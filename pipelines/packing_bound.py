"""How full could packs be at best? A bound that no packing can beat, so that fill can be told from supply.

Every id needs a place, and documents that stay whole need packs by themselves. The fewest packs for those come from
dual feasible functions: f maps lengths to weights such that what fits into a pack together never weighs more than a
pack does; then Σ f ÷ f(context), rounded up, is a bound (Fekete and Schepers, "New classes of fast lower bounds for bin
packing problems", Math. Program. 91, 2001). Tried are Martello and Toth's L2, rounding to multiples of 1/(m - 1), and
the discrete ones of Carlier, Clautiaux and Moukrim (Comput. Oper. Res. 34, 2007). 20 ms for 5,000 lengths.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]

_MOST_TRIED = 256  # of each family


def fewest_packs(lengths: ArrayLike, cuttable: ArrayLike, context: int) -> int:
    """Give a number of packs below which no packing of these documents can go.

    Args:
        lengths: ids of each document (documents,).
        cuttable: whether it may be cut; the others are at most `context` long.
    """
    ids = np.asarray(lengths, np.int64)
    whole = ids[~np.asarray(cuttable, np.bool_)]
    sizes, counts = np.unique(whole, return_counts=True)
    return max(_ceil(int(ids.sum()), context), fewest_packs_of_whole(sizes, counts, context))


def supply_bound(lengths: ArrayLike, cuttable: ArrayLike, context: int) -> float:
    """Give the fill that no packing of these documents can exceed; arguments as of `fewest_packs`."""
    ids = int(np.asarray(lengths, np.int64).sum())
    return ids / (context * fewest_packs(lengths, cuttable, context)) if ids else 1.0


def fewest_packs_of_whole(sizes: Ints, counts: Ints, context: int) -> int:
    """Bound the packs of documents that stay whole, given as ascending lengths and how many have each."""
    if not sizes.size:
        return 0
    return max(_by_l2(sizes, counts, context), _by_rounding(sizes, counts, context), _by_steps(sizes, counts, context))


def _by_l2(sizes: Ints, counts: Ints, context: int) -> int:
    """Leave out what is shorter than e; what is longer than context - e then needs a pack alone. For every e."""
    number = np.concatenate(([0], np.cumsum(counts)))
    ids = np.concatenate(([0], np.cumsum(counts * sizes)))
    shortest = np.concatenate(([0], sizes[2 * sizes <= context]))
    begin = np.searchsorted(sizes, shortest)
    end = np.searchsorted(sizes, context - shortest, side="right")
    return int((number[-1] - number[end] - (ids[begin] - ids[end]) // context).max())


def _by_rounding(sizes: Ints, counts: Ints, context: int) -> int:
    """Round lengths down to multiples of 1/(m - 1) of a pack; exact multiples of 1/m stay as they are."""
    best = 0
    for m in range(2, min(_MOST_TRIED, context) + 1):
        steps, rest = np.divmod(m * sizes, context)
        weights = np.where(rest == 0, sizes * (m - 1), steps * context)
        best = max(best, _ceil(int((weights * counts).sum()), context * (m - 1)))
    return best


def _by_steps(sizes: Ints, counts: Ints, context: int) -> int:
    """Count short lengths in steps of k, rounded down, long ones by what they leave, half a pack as half."""
    longs = context - sizes[2 * sizes > context] + 1
    steps = np.unique(np.concatenate((sizes[2 * sizes <= context], longs[2 * longs <= context])))
    best = 0
    for k in steps[:: -(-steps.size // _MOST_TRIED) or 1].tolist():
        full = context // k
        weights = np.where(2 * sizes > context, 2 * (full - (context - sizes) // k), 2 * (sizes // k))
        weights[2 * sizes == context] = full
        best = max(best, _ceil(int((weights * counts).sum()), 2 * full))
    return best


def _ceil(value: int, unit: int) -> int:
    return -(-value // unit)
