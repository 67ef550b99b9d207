"""Packing: which documents, and which pieces of texts, share a sequence of the context's length.

Documents that must stay whole are packed first, the longest first, each pack closed with the two that fit best. Texts
then fill the holes, whole ones first, each where it fits best; what fits nowhere is cut, the longest first and one used
up before the next. On 5,120 ids without cutting, best fit leaves 10 % of every sequence empty; with cutting it is under
0.01 % as long as there is text, and 15 % of the texts are cut (`benchmarks/plan.py`). A cut costs one unsupervised id.
Compiled (`packing_kernel.py`): ten million documents in two seconds of a core.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int32]

_LONGEST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Piece:
    """Ids [start, start + length) of a document, given by its number in the window."""

    document: int
    start: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packs:
    """The pieces of a window, pack by pack: those of pack i are [offsets[i], offsets[i + 1]).

    `document`, `start` and `length` are int32 (pieces,), `offsets` int64 (packs + 1,). No pack is empty. As a sequence
    it gives each pack as a list of `Piece`.
    """

    document: Ints
    start: Ints
    length: Ints
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return self.offsets.size - 1

    def __getitem__(self, pack: int) -> list[Piece]:
        if not 0 <= pack < len(self):
            raise IndexError(f"pack {pack} of {len(self)}")
        at = slice(self.offsets[pack], self.offsets[pack + 1])
        rows = zip(self.document[at].tolist(), self.start[at].tolist(), self.length[at].tolist(), strict=True)
        return [Piece(*row) for row in rows]

    @property
    def pack(self) -> Ints:
        """The pack of each piece, int32 (pieces,)."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.offsets))

    @property
    def slot(self) -> Ints:
        """The place of each piece in its pack, int32 (pieces,)."""
        return (np.arange(self.document.size) - np.repeat(self.offsets[:-1], np.diff(self.offsets))).astype(np.int32)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Ids of each pack, int64 (packs,)."""
        return _sums(self.length.astype(np.int64), self.offsets)

    @property
    def squares(self) -> NDArray[np.int64]:
        """Sum of the squared lengths of each pack's pieces, int64 (packs,): what attention costs."""
        return _sums(np.square(self.length, dtype=np.int64), self.offsets)

    def reordered(self, order: NDArray[np.int64]) -> Packs:
        """Return the packs in another order; `order` holds each pack's number once."""
        sizes = np.diff(self.offsets)[order]
        offsets = np.concatenate(([0], np.cumsum(sizes)))
        pieces = np.arange(self.document.size) + np.repeat(self.offsets[order] - offsets[:-1], sizes)
        return Packs(
            document=self.document[pieces], start=self.start[pieces], length=self.length[pieces], offsets=offsets
        )

    def split(self, at: Ints) -> Packs:
        """Put whole documents as two pieces side by side: the first `at[document]` ids, and the rest; 0 leaves one."""
        first = at[self.document]
        is_two = first > 0
        if not is_two.any():
            return self
        ends = np.cumsum(1 + is_two)
        pieces = np.repeat(np.arange(self.document.size), 1 + is_two)
        start, length = self.start[pieces], self.length[pieces]
        second, rest = (ends - 1)[is_two], (self.length - first)[is_two]
        length[second - 1], start[second], length[second] = first[is_two], first[is_two], rest
        offsets = np.concatenate(([0], ends))[self.offsets]
        return Packs(document=self.document[pieces], start=start, length=length, offsets=offsets)


def pack(lengths: ArrayLike, cuttable: ArrayLike, context: int, min_piece: int) -> Packs:
    """Put every document of a window into packs of at most `context` ids.

    Args:
        lengths: ids of each document, at least 1, below 2³¹; int32 (documents,) is taken as it is.
        cuttable: whether a document may be cut anywhere (texts); the others must fit the context whole.
        context: ids of a pack.
        min_piece: no cut leaves a piece shorter than this; holes below it stay empty. At most half the context.
    Raises:
        ValueError: a document is empty, or must stay whole and does not fit (the caller drops those, with a reason);
            or `min_piece` is out of range.
    """
    ids, may_cut = np.asarray(lengths), np.asarray(cuttable, np.bool_)
    _check(ids, may_cut, context, min_piece)
    ids, may_cut = np.require(ids, np.int32, ("C", "W")), np.require(may_cut, np.bool_, ("C", "W"))
    return _Packing(ids, may_cut, context, min_piece).run()


def pack_windows(
    lengths: Ints, cuttable: NDArray[np.bool_], ends: Sequence[int], context: int, min_piece: int, threads: int
) -> Generator[Packs, None, None]:
    """Pack windows of documents on threads, in order; a window's packs depend on nothing else.

    Args:
        ends: where each window ends, ascending; window i is documents [ends[i - 1], ends[i]).
        threads: windows packed at once; as many wait to be taken.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="packing") as pool:
        ahead: deque[Future[Packs]] = deque()
        begin = 0
        for end in ends:
            ahead.append(pool.submit(pack, lengths[begin:end], cuttable[begin:end], context, min_piece))
            begin = end
            if len(ahead) == 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def fill_fraction(packs: Packs, context: int) -> float:
    """Tell the share of all positions that hold ids of documents."""
    return float(packs.length.sum(dtype=np.int64) / (context * len(packs))) if len(packs) else 1.0


class _Packing:
    """One window being packed."""

    def __init__(self, lengths: Ints, cuttable: NDArray[np.bool_], context: int, min_piece: int) -> None:
        self._lengths, self._cuttable = lengths, cuttable
        self._context, self._min_piece = context, min_piece
        self._taken = np.zeros_like(lengths)
        self._rooms = _no_stacks(context, 0)
        self._rows = np.empty((lengths.size, 4), np.int32)
        self._placed = self._packs = 0

    def run(self) -> Packs:
        from tokenmill.pipelines.packing_kernel import by_pack, decreasing  # here and below: numba, half a second

        self._fill_packs()
        texts = decreasing(self._lengths, self._cuttable, self._context)
        while texts.size:
            texts = self._place_whole(texts)
            texts = self._place_cut(texts)
            self._open_for(texts)
        document, start, length, ends = by_pack(self._rows[: self._placed], self._packs)
        offsets = np.unique(np.concatenate(([0], ends)))  # packs that stayed empty get no number
        return Packs(document=document, start=start, length=length, offsets=offsets)

    def _fill_packs(self) -> None:
        from tokenmill.pipelines.packing_kernel import fill_packs, stack_whole

        waiting = _no_stacks(self._context, self._lengths.size)
        self._grow(packs=stack_whole(waiting, self._lengths, self._cuttable))
        self._placed, self._packs = fill_packs(self._rows, self._rooms, waiting)

    def _place_whole(self, texts: Ints) -> Ints:
        from tokenmill.pipelines.packing_kernel import place_whole

        self._placed, left = place_whole(self._rows, self._placed, self._rooms, texts, self._lengths, self._taken)
        return texts[:left]

    def _place_cut(self, texts: Ints) -> Ints:
        """Each piece uses up a text or a pack's room, which bounds the pieces."""
        from tokenmill.pipelines.packing_kernel import place_cut

        self._grow(pieces=self._placed + texts.size + self._packs)
        self._placed, left = place_cut(
            self._rows, self._placed, self._rooms, texts, self._lengths, self._taken, self._min_piece
        )
        return texts[:left]

    def _open_for(self, texts: Ints) -> None:
        """Open the fewest packs that can hold what is left of some texts."""
        from tokenmill.pipelines.packing_kernel import open_packs

        ids = int(self._lengths[texts].sum(dtype=np.int64) - self._taken[texts].sum(dtype=np.int64))
        packs = self._packs + -(-ids // self._context)
        self._grow(pieces=self._placed + texts.size, packs=packs)
        open_packs(self._rooms, self._packs, packs)
        self._packs = packs

    def _grow(self, *, pieces: int = 0, packs: int = 0) -> None:
        tops, below, bits = self._rooms
        self._rooms = tops, _at_least(below, packs), bits
        self._rows = _at_least(self._rows, pieces)


def _no_stacks(context: int, items: int) -> tuple[Ints, Ints, NDArray[np.int64]]:
    """Make empty stacks of up to so many items by size, 0 to the context."""
    from tokenmill.pipelines.packing_bits import empty_bits

    return np.full(context + 1, -1, np.int32), np.empty(items, np.int32), empty_bits(context + 1)


def _check(lengths: NDArray[np.integer], cuttable: NDArray[np.bool_], context: int, min_piece: int) -> None:
    if lengths.shape != cuttable.shape:
        raise ValueError(f"{lengths.size} lengths, but {cuttable.size} documents are told cuttable or not")
    if not 1 <= min_piece <= context // 2:
        raise ValueError(f"min_piece is {min_piece} and must be at least 1 and at most half the context of {context}")
    wrong = np.flatnonzero((lengths < 1) | (lengths > np.where(cuttable, _LONGEST, context)))
    if wrong.size:
        raise ValueError(f"document {wrong[0]} has {lengths[wrong[0]]} ids and the context is {context}")


def _at_least(array: Ints, size: int) -> Ints:
    """Return an array with `size` rows or more that begins with the rows of this one."""
    missing = size - len(array)
    return np.concatenate((array, np.empty((missing, *array.shape[1:]), array.dtype))) if missing > 0 else array


def _sums(values: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum values by pack; no pack is empty, which `reduceat` would get wrong."""
    return np.add.reduceat(values, offsets[:-1]) if offsets.size > 1 else np.empty(0, np.int64)
