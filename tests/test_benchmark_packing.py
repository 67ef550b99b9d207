"""What peers of the loader benchmark are given to pack with makes the packs that the reference makes."""

from __future__ import annotations

import numpy as np
from benchmarks.loader_peers.delivery import joined, separate, stacked, taken_apart
from benchmarks.loader_peers.packing import CONTEXT, SIDE, VOCABULARY, Sample, first_fit, pieces

from tokenmill.tokenize.documents import assemble
from tokenmill.tokenize.segments import Segment, TextSegment, VisionSegment
from tokenmill.train.packs import PackArrays, build_pack

ARRAYS = ("input_ids", "labels", "loss_weight", "position_ids", "cu_seqlens")


def made_samples() -> list[Sample]:
    """Two captioned pictures, three texts; one longer than the context."""
    rng = np.random.default_rng(3)
    texts = [rng.integers(0, 256, length).astype(np.uint32) for length in (20, 30, 700, 40, 12_000)]
    codes = [rng.integers(0, 2_048, SIDE * rows).astype(np.uint16) for rows in (SIDE, SIDE, 0, 0, 0)]
    return list(zip(texts, codes, strict=True))


def reference_packs(packs: list[list[Sample]]) -> list[PackArrays]:
    built = []
    for samples in packs:
        documents = []
        for text, codes in samples:
            segments: list[Segment] = [TextSegment(0, len(text), "caption" if len(codes) else "body")]
            if len(codes):
                segments.append(VisionSegment(1, SIDE, SIDE, 0))
            template = "generation" if len(codes) else "language"
            documents.append(assemble(segments, text, codes, template, VOCABULARY))
        built.append(build_pack(documents, CONTEXT, VOCABULARY.pad))
    return built


def test_first_fit_of_peers_gives_the_arrays_of_the_reference() -> None:
    first, second, long_text, short, longest = made_samples()
    cut = [(piece, longest[1]) for piece in pieces(*longest)]
    expected = reference_packs([[first, long_text, short], [second], [cut[0]], [cut[1]], [cut[2]]])

    found = list(first_fit(made_samples()))

    assert len(cut) == 3
    for pack, reference in zip(found, expected, strict=True):
        assert pack["num_tokens"] == reference.num_tokens
        for name in ARRAYS:
            assert pack[name].dtype == getattr(reference, name).dtype
            np.testing.assert_array_equal(pack[name], getattr(reference, name))


def test_what_workers_send_comes_out_as_it_went_in() -> None:
    packs = list(first_fit(made_samples()))

    for pack, sent in zip(packs, separate(stacked(packs)), strict=True):
        assert all(np.array_equal(pack[name], sent[name]) for name in ARRAYS)
        assert pack["num_tokens"] == sent["num_tokens"]
    for one, sent in zip(made_samples(), taken_apart(joined(made_samples())), strict=True):
        assert all(np.array_equal(mine, his) and mine.dtype == his.dtype for mine, his in zip(one, sent, strict=True))
