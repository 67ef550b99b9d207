"""What a plan draws of a shard: shares that only add, templates and captions in their proportions, every refusal."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.drawing import drawn_of

from tokenmill.errors import ManifestError, SampleError
from tokenmill.pipelines.plan_draws import uniform, uniforms
from tokenmill.pipelines.plan_templates import TEMPLATE_NAMES, sorted_shares, steps
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.documents import document_spans
from tokenmill.tokenize.layouts import structure
from tokenmill.tokenize.segments import Segment, TextSegment, VisionSegment, segments_to_json
from tokenmill.tokenize.vocabulary import byte_vocabulary

V = byte_vocabulary(64)
PICTURE = VisionSegment(1, 2, 2, 0)


def row(key: str, segments: list[Segment] | str | None, modality: str = "image") -> dict[str, str | None]:
    told = json.dumps(segments_to_json(segments)) if isinstance(segments, list) else segments
    return {"key": key, "modality": modality, "segments": told}


def captioned(captions: int = 1, words: int = 9) -> list[Segment]:
    return [*(TextSegment(0, words, "caption", variant=n) for n in range(captions)), PICTURE]


def test_draw_of_a_larger_share_takes_all_of_the_smaller_one():
    rows = [row(f"k{n}", captioned(3)) for n in range(500)]
    taken = []
    for share in (0.1, 0.3, 0.7, 1.0):
        drawn, refused, _ = drawn_of(rows, PlanSettings(), V, share=share)
        assert refused.dropped.get("not_drawn", 0) == 500 - len(drawn)
        columns = (drawn.sample.tolist(), drawn.template.tolist(), drawn.variant.tolist())
        taken.append(set(zip(*columns, strict=True)))
    assert taken[0] < taken[1] < taken[2] < taken[3]
    assert abs(len(taken[1]) - 150) < 50


def test_draw_differs_by_seed_repetition_and_shard_and_not_by_what_else_the_plan_says():
    rows = [row(f"k{n}", captioned(4)) for n in range(200)]

    def of(settings: PlanSettings, **changes):
        drawn, _, _ = drawn_of(rows, settings, V, **changes)
        return drawn.template.tolist(), drawn.variant.tolist()

    first = of(PlanSettings())
    assert first == of(PlanSettings(context=777, min_piece=20, phase="other"))
    others = [of(PlanSettings(seed=1)), of(PlanSettings(), repetition=1), of(PlanSettings(), digest="e")]
    assert all(first[0] != other[0] and first[1] != other[1] for other in others)


def test_draw_gives_templates_and_captions_their_shares():
    rows = [row(f"k{n}", captioned(4)) for n in range(4_000)]
    shares = {"image": {"generation": 0.5, "understanding": 0.3, "unconditional": 0.2}}
    drawn, _, _ = drawn_of(rows, PlanSettings(templates=shares), V)
    for name, share in shares["image"].items():
        assert abs(np.mean(drawn.template == TEMPLATE_NAMES.index(name)) - share) < 0.03
    assert np.abs(np.bincount(drawn.variant) / 4_000 - 0.25).max() < 0.03


def test_draw_of_every_document_is_as_long_as_the_reference_says():
    kinds = [captioned(2, 7), [*captioned(1), VisionSegment(2, 3, 3, 4, fps=8.0, seconds=1.5)], captioned(3, 40)]
    drawn, _, _ = drawn_of([row(f"k{n}", kinds[n % 3]) for n in range(90)], PlanSettings(), V)
    for number in range(len(drawn)):
        document = drawn.document(number)
        assert document.spans == document_spans(kinds[document.sample % 3], document.template, V, document.variant)
        assert document.length == drawn.length[number]


def test_draw_leaves_out_what_is_no_document_by_reason_and_keeps_the_others():
    rows = [
        row("failed", None),
        row("fits", captioned()),
        row("damaged", '[{"text": [5, 2], "role": "caption"}]'),
        row("no JSON", "{"),
        row("no segments", []),
        row("no ids", [TextSegment(4, 4, "body")], "text"),
        row("no template", captioned(), "sound"),
        row("no words", [PICTURE], "text"),
        row("too long", [*captioned(), VisionSegment(1, 40, 40, 0)]),
    ]
    drawn, refused, rows_in = drawn_of(rows, PlanSettings(), V)
    assert [rows[sample]["key"] for sample in drawn.sample] == ["fits"]
    assert rows_in == 8 == len(drawn) + refused.count
    assert {rows[number]["key"]: reason for number, reason, _ in refused.listed} == {
        "damaged": "bad_segments",
        "no JSON": "bad_segments",
        "no segments": "empty",
        "no ids": "empty",
        "no template": "no_template",
        "no words": "no_text",
        "too long": "too_long",
    }
    assert refused.failed == {"bad_segments": 2}
    assert {message for _, _, message in refused.listed} >= {
        "text segment [5, 2) is not a range",
        "the plan has no template for sound",
    }


def test_draw_holds_samples_out_by_their_key_alone():
    rows = [row(f"k{n}", captioned()) for n in range(300)]
    held = {n for n in range(300) if uniform("held out", f"s/k{n}") < 0.2}
    for seed in (0, 1):
        settings = PlanSettings(held_out=0.2, seed=seed, exclude=("k7", "k8"))
        training, refused, _ = drawn_of(rows, settings, V)
        other, _, _ = drawn_of(rows, settings.model_copy(update={"part": "held_out"}), V)
        assert set(other.sample.tolist()) == held - {7, 8}
        assert set(training.sample.tolist()) == set(range(300)) - held - {7, 8}
        assert refused.dropped == {"held_out": len(held), "excluded": len({7, 8} - held)}


def test_draw_from_an_empty_index_or_one_of_failures_gives_nothing():
    for rows in ([], [row("a", None), row("b", None)]):
        drawn, refused, rows_in = drawn_of(rows, PlanSettings(held_out=0.5, exclude=("a",)), V, share=0.5)
        assert (len(drawn), refused.count, rows_in) == (0, 0, 0)


def test_index_with_a_column_of_another_kind_is_named():
    import polars as pl

    from tokenmill.manifests.named_tables import NamedTable
    from tokenmill.manifests.stagedir import table_bytes

    table = NamedTable(path="there.parquet", data=table_bytes(pl.DataFrame({"modality": [1], "segments": ["[]"]}), 1))
    with pytest.raises(ManifestError, match=r"there\.parquet.*int64"):
        table.codes(["modality", "segments"])
    with pytest.raises(ManifestError, match=r"there\.parquet.*'other'"):
        table.codes(["other"])
    with pytest.raises(ManifestError, match=r"there\.parquet.*not a readable table"):
        NamedTable(path="there.parquet", data=table.data[:-30]).codes(["segments"])


def test_uniforms_of_a_larger_count_only_add():
    assert uniforms(1_000, "a", "b")[:10].tolist() == uniforms(10, "a", "b").tolist()
    assert uniforms(3, "a", "b").tolist() != uniforms(3, "ab", "").tolist()
    # The stream is part of what a plan is: these must never change.
    assert uniforms(2, "seed", "shard").tolist() == PINNED


PINNED = [0.26662764620358104, 0.982228419015309]


@given(st.dictionaries(st.sampled_from(TEMPLATE_NAMES), st.floats(0.01, 2), min_size=1), st.floats(0, 0.999999))
def test_draw_of_a_template_goes_on_among_the_others_that_fit(templates, position):
    """The step function is the loop: draw by share, take the refusing one out, draw again with the same number."""
    signature = json.dumps(segments_to_json([TextSegment(0, 5, "caption")])).encode()
    shares = dict(sorted_shares(templates))
    outcome = next(one for edge, one in steps(V, "text", sorted_shares(templates), 0, signature) if position < edge)
    reasons = []
    while shares:
        edges = np.cumsum(list(shares.values())) / sum(shares.values())
        name = list(shares)[min(int(np.searchsorted(edges, position, "right")), len(shares) - 1)]
        one = structure(V, name, 0, signature)
        if not isinstance(one, SampleError):
            assert outcome == name
            return
        reasons.append(one.reason)
        del shares[name]
    assert isinstance(outcome, SampleError)
    assert outcome.reason == reasons[0]
