"""Packing: nothing lost, nothing twice, nothing over the context, no vision cut, the same packs every time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.pipelines.packing import Piece, fill_fraction, pack

CONTEXT = 100
MIN_PIECE = 8

documents = st.lists(
    st.tuples(st.booleans(), st.integers(1, 400)).map(lambda d: (d[0], d[1] if d[0] else min(d[1], CONTEXT))),
    max_size=60,
)


def emu3_lengths(count: int, context: int, seed: int = 0) -> tuple[list[int], list[bool]]:
    """40 % 512² images, 20 % 256², 40 % text (log-normal), as in the design's measurements."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(3, size=count, p=[0.4, 0.2, 0.4])
    texts = np.clip(rng.lognormal(np.log(600), 1.2, size=count), 2, None).astype(int)
    lengths = [(64 * 65 + 70, 32 * 33 + 70, int(texts[n]))[kind] for n, kind in enumerate(kinds)]
    return [min(length, context) for length in lengths], [bool(kind == 2) for kind in kinds]


@given(documents)
@settings(max_examples=300, deadline=None)
def test_pack_any_documents_places_every_id_once(given_documents: list[tuple[bool, int]]) -> None:
    cuttable = [may_cut for may_cut, _ in given_documents]
    lengths = [length for _, length in given_documents]

    packs = pack(lengths, cuttable, CONTEXT, MIN_PIECE)

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


@given(documents)
@settings(max_examples=50, deadline=None)
def test_pack_same_documents_gives_same_packs(given_documents: list[tuple[bool, int]]) -> None:
    cuttable = [may_cut for may_cut, _ in given_documents]
    lengths = [length for _, length in given_documents]

    assert pack(lengths, cuttable, CONTEXT, MIN_PIECE) == pack(list(lengths), list(cuttable), CONTEXT, MIN_PIECE)


def test_pack_with_enough_text_fills_every_pack() -> None:
    lengths, cuttable = emu3_lengths(5_000, 5_120)

    filled = fill_fraction(pack(lengths, cuttable, 5_120, 16), 5_120)
    uncut = fill_fraction(pack(lengths, [False] * len(lengths), 5_120, 16), 5_120)

    assert filled >= 0.995
    assert uncut < 0.95


def test_pack_whole_document_longer_than_context_raises_value_error() -> None:
    with pytest.raises(ValueError, match="document 1 has 101 ids"):
        pack([5, 101], [True, False], CONTEXT, MIN_PIECE)


def test_pack_nothing_gives_no_packs() -> None:
    assert pack([], [], CONTEXT, MIN_PIECE) == []
