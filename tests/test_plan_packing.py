"""Packing: nothing lost, nothing twice, nothing over the context, no vision cut, the same packs every time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.packing_reference import pack_slowly

from tokenmill.pipelines.packing import Packs, Piece, fill_fraction, pack, pack_windows
from tokenmill.pipelines.packing_bits import clear_bit, empty_bits, first_from, set_bit
from tokenmill.pipelines.packing_bound import fewest_packs, supply_bound

CONTEXT = 100
MIN_PIECE = 8

documents = st.lists(
    st.tuples(st.booleans(), st.integers(1, 400)).map(lambda d: (d[0], d[1] if d[0] else min(d[1], CONTEXT))),
    max_size=60,
)
few_whole = st.lists(st.integers(1, 30), min_size=1, max_size=7)


def emu3_lengths(count: int, seed: int = 0) -> tuple[list[int], list[bool]]:
    """40 % 512² images, 20 % 256², 40 % text (log-normal), as in the design's measurements."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(3, size=count, p=[0.4, 0.2, 0.4])
    texts = np.clip(rng.lognormal(np.log(600), 1.2, size=count), 2, None).astype(int)
    lengths = [(64 * 65 + 70, 32 * 33 + 70, int(texts[n]))[kind] for n, kind in enumerate(kinds)]
    return lengths, [bool(kind == 2) for kind in kinds]


def split(given_documents: list[tuple[bool, int]]) -> tuple[list[int], list[bool]]:
    return [length for _, length in given_documents], [may_cut for may_cut, _ in given_documents]


def as_lists(packs: Packs) -> list[list[Piece]]:
    return [packs[number] for number in range(len(packs))]


@given(documents)
@settings(max_examples=150, deadline=None)
def test_pack_any_documents_places_every_id_once(given_documents: list[tuple[bool, int]]) -> None:
    lengths, cuttable = split(given_documents)

    packs = as_lists(pack(lengths, cuttable, CONTEXT, MIN_PIECE))

    assert all(0 < sum(piece.length for piece in pieces) <= CONTEXT for pieces in packs)
    found: dict[int, list[Piece]] = {}
    for piece in (piece for pieces in packs for piece in pieces):
        found.setdefault(piece.document, []).append(piece)
    assert sorted(found) == list(range(len(lengths)))
    for number, pieces in found.items():
        pieces.sort(key=lambda piece: piece.start)
        ends = np.cumsum([piece.length for piece in pieces]).tolist()
        assert [piece.start for piece in pieces] == [0, *ends[:-1]]
        assert ends[-1] == lengths[number]
        assert cuttable[number] or len(pieces) == 1
        assert len(pieces) == 1 or all(piece.length >= MIN_PIECE for piece in pieces)


@given(documents, st.integers(1, CONTEXT // 2))
@settings(max_examples=300, deadline=None)
def test_pack_compiled_gives_what_the_rule_in_plain_python_gives(
    given_documents: list[tuple[bool, int]], min_piece: int
) -> None:
    lengths, cuttable = split(given_documents)

    packs = as_lists(pack(lengths, cuttable, CONTEXT, min_piece))

    assert [[(p.document, p.start, p.length) for p in pieces] for pieces in packs] == pack_slowly(
        lengths, cuttable, CONTEXT, min_piece
    )


@pytest.mark.parametrize("count", [0, 1, 700])
def test_pack_of_realistic_lengths_follows_the_rule_in_plain_python(count: int) -> None:
    lengths, cuttable = emu3_lengths(count)
    cuttable = [cuttable[n] and (n % 2 == 0 or lengths[n] > 5_120) for n in range(count)]  # so that whole lengths vary

    packs = as_lists(pack(lengths, cuttable, 5_120, 16))

    assert [[(p.document, p.start, p.length) for p in pieces] for pieces in packs] == pack_slowly(
        lengths, cuttable, 5_120, 16
    )


@given(documents, st.lists(st.integers(0, 60), max_size=4))
@settings(max_examples=50, deadline=None)
def test_pack_windows_any_number_of_threads_gives_the_packs_of_each_window(
    given_documents: list[tuple[bool, int]], cuts: list[int]
) -> None:
    lengths, cuttable = (
        np.array([n for _, n in given_documents], np.int32),
        np.array([c for c, _ in given_documents], bool),
    )
    ends = [*sorted(min(cut, lengths.size) for cut in cuts), lengths.size]

    found = [list(pack_windows(lengths, cuttable, ends, CONTEXT, MIN_PIECE, threads)) for threads in (1, 2, 5)]

    alone = [pack(lengths[a:b], cuttable[a:b], CONTEXT, MIN_PIECE) for a, b in pairwise([0, *ends])]
    assert all([as_lists(packs) for packs in windows] == [as_lists(packs) for packs in alone] for windows in found)


def test_pack_windows_wrong_document_in_a_late_window_raises_value_error() -> None:
    lengths, cuttable = np.full(90, 10, np.int32), np.zeros(90, bool)
    lengths[75] = 0

    with pytest.raises(ValueError, match="document 5 has 0 ids"):
        list(pack_windows(lengths, cuttable, range(10, 91, 10), CONTEXT, MIN_PIECE, threads=2))


@given(documents)
@settings(max_examples=100, deadline=None)
def test_packs_as_arrays_tell_the_same_as_lists(given_documents: list[tuple[bool, int]]) -> None:
    packs = pack(*split(given_documents), CONTEXT, MIN_PIECE)
    lists = as_lists(packs)
    order = np.random.default_rng(0).permutation(len(packs))

    assert packs.pack.tolist() == [number for number, pieces in enumerate(lists) for _ in pieces]
    assert packs.slot.tolist() == [slot for pieces in lists for slot, _ in enumerate(pieces)]
    assert packs.tokens.tolist() == [sum(p.length for p in pieces) for pieces in lists]
    assert packs.squares.tolist() == [sum(p.length**2 for p in pieces) for pieces in lists]
    assert as_lists(packs.reordered(order)) == [lists[number] for number in order]


def test_pack_with_enough_text_fills_every_pack_and_cuts_few() -> None:
    lengths, cuttable = emu3_lengths(20_000)

    packs = pack(lengths, cuttable, 5_120, 16)
    uncut = fill_fraction(pack(np.minimum(lengths, 5_120), [False] * len(lengths), 5_120, 16), 5_120)

    assert fill_fraction(packs, 5_120) >= 0.9995
    assert uncut < 0.95
    assert (np.bincount(packs.document) > 1).sum() < 0.2 * sum(cuttable)


def test_pack_texts_that_fit_whole_cuts_none() -> None:
    packs = pack([60, 60, 60, 30, 30, 25, 10], [False] * 3 + [True] * 4, CONTEXT, MIN_PIECE)

    assert len(packs) == 3
    assert packs.document.size == 7


def test_pack_closes_a_pack_with_the_two_documents_that_fill_it() -> None:
    packs = pack([60, 35, 21, 19, 35, 30], [False] * 6, CONTEXT, MIN_PIECE)

    assert [[piece.length for piece in pieces] for pieces in as_lists(packs)] == [[60, 21, 19], [35, 35, 30]]


def test_pack_with_too_little_text_reaches_the_supply_bound() -> None:
    lengths, cuttable = emu3_lengths(10_000)
    for number in np.flatnonzero(cuttable)[:3_500]:
        lengths[number], cuttable[number] = 32 * 33 + 70, False

    fill = fill_fraction(pack(lengths, cuttable, 5_120, 16), 5_120)

    assert fill < 0.95
    assert fill >= 0.995 * supply_bound(lengths, cuttable, 5_120)


@given(documents)
@settings(max_examples=200, deadline=None)
def test_supply_bound_is_never_below_the_fill(given_documents: list[tuple[bool, int]]) -> None:
    lengths, cuttable = split(given_documents)

    packs = pack(lengths, cuttable, CONTEXT, MIN_PIECE)

    assert fewest_packs(lengths, cuttable, CONTEXT) <= len(packs)
    assert supply_bound(lengths, cuttable, CONTEXT) >= fill_fraction(packs, CONTEXT)


@given(few_whole)
@settings(max_examples=200, deadline=None)
def test_fewest_packs_is_never_above_the_best_of_all_packings(lengths: list[int]) -> None:
    assert fewest_packs(lengths, [False] * len(lengths), 30) <= best_of_all(tuple(sorted(lengths)), 30)


def best_of_all(lengths: tuple[int, ...], context: int) -> int:
    """Put the longest with every choice of others that fits, and the rest likewise."""
    if not lengths:
        return 0
    *others, longest = lengths
    choices = [
        [n for n in range(len(others)) if chosen >> n & 1]
        for chosen in range(1 << len(others))
        if longest + sum(others[n] for n in range(len(others)) if chosen >> n & 1) <= context
    ]
    return 1 + min(best_of_all(tuple(x for n, x in enumerate(others) if n not in taken), context) for taken in choices)


@pytest.mark.parametrize(
    ("lengths", "packs"),
    [
        ([51] * 7, 7),  # L2: longer than half
        ([60] * 5 + [30] * 10, 7),  # one beside each, the other five by threes
        ([26] * 12, 4),  # three to a pack, by rounding
        ([50] * 5, 3),
        ([], 0),
    ],
)
def test_fewest_packs_of_whole_documents_is_tight_where_ids_alone_are_not(lengths: list[int], packs: int) -> None:
    found = fewest_packs(lengths, [False] * len(lengths), CONTEXT)

    assert found == packs == len(pack(lengths, [False] * len(lengths), CONTEXT, MIN_PIECE))


@given(st.sets(st.integers(0, 39_999), max_size=30), st.lists(st.integers(0, 40_000), max_size=10))
@settings(max_examples=100, deadline=None)
def test_first_from_finds_the_smallest_that_is_no_smaller(numbers: set[int], asked: list[int]) -> None:
    bits = empty_bits(40_000)
    for number in numbers:
        set_bit(bits, number)
    for number in sorted(numbers)[::2]:
        clear_bit(bits, number)
    left = sorted(numbers)[1::2]

    for number in asked:
        assert first_from(bits, number) == min((n for n in left if n >= number), default=-1)


@pytest.mark.parametrize(
    ("lengths", "cuttable", "message"),
    [
        ([5, 101], [True, False], "document 1 has 101 ids and the context is 100"),
        ([5, 0], [True, True], "document 1 has 0 ids"),
        ([5, -3], [True, False], "document 1 has -3 ids"),
        ([5, 2**31], [True, True], "document 1 has 2147483648 ids"),
        ([5], [True, False], "1 lengths, but 2 documents"),
    ],
)
def test_pack_wrong_document_raises_value_error_naming_it(
    lengths: list[int], cuttable: list[bool], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pack(lengths, cuttable, CONTEXT, MIN_PIECE)


def test_pack_pieces_longer_than_half_the_context_are_refused() -> None:
    with pytest.raises(ValueError, match="min_piece is 51 and must be at least 1 and at most half"):
        pack([101], [True], CONTEXT, 51)


def test_pack_nothing_gives_no_packs() -> None:
    packs = pack([], [], CONTEXT, MIN_PIECE)

    assert len(packs) == 0
    assert fill_fraction(packs, CONTEXT) == 1.0
