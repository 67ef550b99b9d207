"""Preference pairs from what is told of them to the packs of a loader: both answers whole, side by side, not equal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.continued_plans import after
from tests.pages import drawn

from tokenmill.demo.tokens import RED, Amounts, write_shards, write_token_source
from tokenmill.errors import RecipeError, SampleError
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.storage import Store, open_store
from tokenmill.manifests.verify_plan import plan_faults
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.checks import check_chain
from tokenmill.pipelines.held_out import draw_documents
from tokenmill.pipelines.plan import write_plan
from tokenmill.pipelines.sources.layouts import lay_out as lay_out_json
from tokenmill.pipelines.sources.raw_document import RawPicture, RawText
from tokenmill.recipe import check_recipe
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.documents import assemble
from tokenmill.tokenize.preference import check_pair
from tokenmill.tokenize.segments import Segment, TextSegment, VisionSegment
from tokenmill.tokenize.templates import PREFERENCE, lay_out
from tokenmill.tokenize.vision import load_vision_tokenizer
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.loader import PlanLoader
from tokenmill.verification import plan_checks

V = byte_vocabulary(2048)
NONE = np.zeros(0, np.uint32)
DRAWN: list[Segment] = [
    TextSegment(0, 3, "caption"),
    VisionSegment(1, 1, 2, 2, answer="rejected"),
    VisionSegment(1, 1, 2, 0, answer="chosen"),
]
TOLD: list[Segment] = [
    TextSegment(0, 2, "user"),
    TextSegment(2, 3, "assistant", learn=True),
    TextSegment(3, 4, "user", learn=False),
    TextSegment(4, 6, "assistant", answer="chosen"),
    TextSegment(6, 7, "assistant", answer="rejected"),
]


def picture(codes: Sequence[int]) -> list[int]:
    return [V.sov, *b"1*2", V.sot, *(code + V.vision_base for code in codes), V.eol, V.eof, V.eov]


def test_preference_of_pictures_is_the_caption_with_either_answer_and_learns_the_answers_alone():
    found = assemble(DRAWN, np.array(list(b"abc")), np.array([5, 6, 7, 8]), PREFERENCE, V, vision_weight=0.5)
    halves = [[V.bos, *b"abc", *picture(codes), V.eos] for codes in ([5, 6], [7, 8])]
    assert found.ids.tolist() == halves[0] + halves[1]
    assert found.weights.tolist() == 2 * ([0.0] * 4 + [0.5] * (len(halves[0]) - 4))
    alone = assemble(DRAWN, np.array(list(b"abc")), np.array([5, 6, 7, 8]), "chosen", V)
    assert alone.ids.tolist() == halves[0]


def test_preference_of_texts_is_a_chat_whose_earlier_answers_are_not_learned():
    found = assemble(TOLD, np.array(list(b"abcdefg")), NONE, PREFERENCE, V)
    opened = [V.bos, *b"You are a helpful assistant. USER: ab. ASSISTANT:c", V.eos, *b" USER: d. ASSISTANT:"]
    halves = [[*opened, *b"ef", V.eos], [*opened, *b"g", V.eos]]
    assert found.ids.tolist() == halves[0] + halves[1]
    assert np.flatnonzero(found.weights).tolist() == [
        *range(len(opened), len(halves[0])), *range(len(halves[0]) + len(opened), len(found.ids))
    ]  # fmt: skip


@pytest.mark.parametrize("template", ["generation", "understanding", "language", "unconditional", "interleaved"])
def test_pair_is_refused_by_every_template_that_would_show_both_answers_as_one(template):
    with pytest.raises(SampleError, match="shown by chosen or preference") as found:
        lay_out(DRAWN, template, V)
    assert found.value.reason == "is_pair"


@pytest.mark.parametrize("template", ["chosen", PREFERENCE])
def test_sample_without_two_answers_is_no_pair(template):
    with pytest.raises(SampleError, match="rejected is missing"):
        lay_out([DRAWN[0], DRAWN[2]], template, V)


@pytest.mark.parametrize(
    ("segments", "codes", "reason"),
    [
        (DRAWN, [5, 6, 7, 8], None),
        (DRAWN, [5, 6, 5, 6], "equal_answers"),
        ([DRAWN[1], VisionSegment(1, 2, 1, 0, answer="chosen")], [5, 6, 5, 6], None),
        (DRAWN[:2], [5, 6, 7, 8], "no_pair"),
        ([TextSegment(0, 0, "body", answer="chosen"), DRAWN[1]], [5, 6, 7, 8], "empty_answer"),
        (DRAWN[:1], [], None),
    ],
)
def test_pair_with_answers_that_teach_nothing_is_refused_naming_both(segments, codes, reason):
    if reason is None:
        check_pair(segments, np.array(list(b"abc")), np.array(codes))
        return
    with pytest.raises(SampleError) as found:
        check_pair(segments, np.array(list(b"abc")), np.array(codes))
    assert found.value.reason == reason
    assert reason != "equal_answers" or "chosen (2 ids) and rejected (2 ids)" in str(found.value)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "root"))


def pairs_of(plan: Plan) -> list[tuple[str, int, int]]:
    """Return shard, sample and pass of every pair, having looked that its halves stand next to each other."""
    found = []
    for pack in range(plan.num_packs):
        rows = [row for row in plan.documents(pack) if row.template == PREFERENCE]
        slots = [slot for slot, row in enumerate(plan.documents(pack)) if row.template == PREFERENCE]
        for slot, first, second in zip(slots[::2], rows[::2], rows[1::2], strict=True):
            assert plan.documents(pack)[slot + 1] == second
            assert (first.shard, first.sample, first.repetition) == (second.shard, second.sample, second.repetition)
            assert (first.start, second.start) == (0, first.length)
            found.append((first.shard, first.sample, first.repetition))
    return found


def mixed(store: Store, settings: PlanSettings, pairs: int = 40) -> Plan:
    snapshots = [
        write_token_source(store, "pairs", V, Amounts(pairs=pairs, side=4)),
        write_token_source(store, "rest", V, Amounts(texts=20, images=10)),
    ]
    return write_plan(store, snapshots, settings)


def test_plan_puts_both_answers_of_a_pair_side_by_side_and_verifies(store):
    plan = mixed(store, PlanSettings(context=200, mix={"pairs": 1.5}, window_documents=30))
    found = pairs_of(plan)
    assert len(found) == len(set(found)) == plan.description["totals"]["pairs"] == 60
    assert plan_faults(plan, plan_checks(), deep=True) == []
    assert plan.description["templates"][PREFERENCE]["documents"] == 60


def test_plan_leaves_out_a_pair_that_does_not_fit_with_both_answers(store):
    with pytest.raises(RecipeError, match="too_long 4"):
        write_plan(store, [write_token_source(store, "pairs", V, Amounts(pairs=4, side=4))], PlanSettings(context=70))


def test_plan_shows_only_chosen_answers_where_its_templates_say_so(store):
    plan = mixed(store, PlanSettings(context=200, templates={"pair": {"chosen": 1}, "text": {"language": 1}}))
    assert pairs_of(plan) == []
    assert plan.description["templates"]["chosen"]["documents"] == 40


def test_plan_by_share_counts_both_answers(store):
    plan = mixed(store, PlanSettings(context=200, mix={"pairs": {"share": 0.3}, "rest": {"share": 0.7}}, tokens=3_000))
    everything = mixed(store, PlanSettings(context=200))
    measured = plan.description["sources"]["pairs"]["measured"]["tokens"]
    assert measured == everything.description["templates"][PREFERENCE]["tokens"] == 40 * 2 * 38


def test_held_out_pairs_are_shown_with_the_chosen_answer_alone(store):
    snapshot = write_token_source(store, "pairs", V, Amounts(pairs=40, side=4))
    plan = write_plan(store, [snapshot], PlanSettings(context=200, held_out=0.3))
    held_out = draw_documents(plan, V, "held_out", 100)
    assert len(held_out) + plan.description["totals"]["pairs"] == 40
    assert {(one.template, len(one.ids)) for one in held_out} == {("chosen", 38)}
    for one in held_out:
        assert (one.ids == RED + V.vision_base).sum() == 12  # of 16 codes; of the rejected answer 4


def test_continued_plan_keeps_pairs_whole_and_takes_each_once(store):
    settings = PlanSettings(context=200, window_documents=30)
    plan = mixed(store, settings)
    border = after(plan, 3)
    before = [row for pack in range(border.first_pack) for row in plan.documents(pack)]
    consumed = {(row.shard, row.sample, row.repetition) for row in before if row.template == PREFERENCE}
    new = mixed_again(store, settings, border)
    assert consumed
    assert sorted([*pairs_of(new), *consumed]) == sorted(pairs_of(plan))
    assert plan_faults(new, plan_checks(), deep=True) == []


def mixed_again(store: Store, settings: PlanSettings, border: Any) -> Plan:
    snapshots = [
        write_token_source(store, "pairs", V, Amounts(pairs=40, side=4)),
        write_token_source(store, "rest", V, Amounts(texts=20, images=10)),
    ]
    return write_plan(store, snapshots, settings, border)


def test_loader_gives_either_answer_as_a_document_of_its_own(store):
    codes, ids = np.array([5, 6, 7, 8], np.uint16), np.array(list(b"abc"), np.uint32)
    plan = write_plan(store, [write_shards(store, "pairs", V, [[("one", "image", DRAWN, ids, codes)]])],
                      PlanSettings(context=64))  # fmt: skip
    (pack,) = PlanLoader(plan, V, global_packs=1).step(0).micro_batches
    whole = assemble(DRAWN, ids, codes, PREFERENCE, V)
    half = len(whole.ids) // 2
    assert pack.cu_seqlens.tolist() == [0, half, 2 * half, 64]
    assert pack.input_ids[: 2 * half].tolist() == whole.ids.tolist()
    weights = np.concatenate([whole.weights[1:half], [0], whole.weights[half + 1 :], [0]])
    assert pack.loss_weight[: 2 * half].tolist() == weights.tolist()
    assert pack.position_ids[half] == 0


def layout(value: dict[str, Any]) -> list[Any]:
    return list(lay_out_json(value).parts)


def test_preference_layout_of_pictures_takes_the_prompt_for_a_caption():
    laid = layout({"prompt": "A box.", "chosen": {"image": "a.png"}, "rejected": {"bytes": b"x", "path": "b.png"}})
    assert laid == [
        RawText(text="A box.", role="caption", learn=False),
        RawPicture(number=0, answer="chosen"),
        RawPicture(number=1, answer="rejected"),
    ]


def test_preference_layout_of_texts_takes_the_prompt_for_a_question_with_its_picture():
    laid = layout({"prompt": "<image>\nRed?", "images": ["a.png"], "chosen": "Yes.", "rejected": "No."})
    assert laid == [
        RawPicture(number=0, learn=False, role="user"),
        RawText(text="Red?", role="user", learn=False),
        RawText(text="Yes.", role="assistant", answer="chosen"),
        RawText(text="No.", role="assistant", answer="rejected"),
    ]


def test_preference_layout_of_two_conversations_finds_the_turns_that_they_share():
    asked = [
        {"role": "user", "content": "A?"},
        {"role": "assistant", "content": "B."},
        {"role": "user", "content": "C?"},
    ]
    ends = {name: [*asked, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    told = [*layout(ends)]
    assert told == layout({"prompt": asked, **{name: turns[3:] for name, turns in ends.items()}})
    assert [(part.text, part.learn, part.answer) for part in told] == [
        ("A?", False, None), ("B.", False, None), ("C?", False, None),
        ("chosen", True, "chosen"), ("rejected", True, "rejected"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"prompt": "A?", "chosen": "Yes.", "rejected": "Yes."}, "equal_answers"),
        ({"prompt": "A.", "chosen": {"image": "a.png"}, "rejected": {"image": "a.png"}}, "equal_answers"),
        ({"prompt": "A?", "chosen": "Yes.", "rejected": 3}, "bad_lists"),
        ({"prompt": "A?", "chosen": "Yes.", "rejected": " "}, "empty_text"),
        ({"prompt": 7, "chosen": "Yes.", "rejected": "No."}, "bad_lists"),
        ({"prompt": "A?", "chosen": "Yes.", "rejected": [{"role": "user", "content": "No."}]}, "unknown_role"),
        ({"prompt": "<image> A?", "chosen": "Yes.", "rejected": "No."}, "placeholder_count"),
        ({"segments": [{"text": "A."}, {"text": "B.", "answer": "chosen"}]}, "no_pair"),
        ({"segments": [{"text": "A.", "answer": "best"}, {"text": "B.", "answer": "chosen"}]}, "bad_lists"),
    ],
)
def test_preference_layout_that_contradicts_itself_says_why(value, reason):
    with pytest.raises(SampleError) as found:
        lay_out_json(value)
    assert found.value.reason == reason


def test_pairs_of_a_table_of_pictures_become_tokens_and_packs(tmp_path):
    """Two files of one picture differ until they are codes: then their answers are equal, and refused."""
    pictures = {"a.png": drawn(0), "b.png": drawn(1), "same.png": drawn(0, "BMP")}
    rows = [
        {"prompt": "A box.", "chosen": {"image": "a.png"}, "rejected": {"image": "b.png"}},
        {"prompt": "A box.", "chosen": {"image": "a.png"}, "rejected": {"image": "same.png"}},
        {"prompt": "Red?", "chosen": "Yes.", "rejected": "Yes."},
        {"prompt": "Red?", "chosen": "Yes.", "rejected": "No."},
    ]
    data = tmp_path / "data"
    data.mkdir()
    for name, bytes_ in pictures.items():
        (data / name).write_bytes(bytes_)
    (data / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chain = Chain(recipe=check_recipe({
        "root": str(tmp_path / "root"),
        "execution": {"executor": "inline", "decode_threads": 1},
        "sources": {"pairs": {"kind": "documents", "url": str(data)}},
        "tokenize": {"vocabulary": {"name": "bytes", "codebook_size": 2048}, "vision": {"name": "scenes"},
                     "document": {"min_area": 1024, "max_area": 4096}},
        "plan": {"context": 600},
    }, "pairs"), options=ChainOptions(quiet=True))  # fmt: skip
    check_chain(chain)
    plan = chain.plan
    (tokens,) = chain.tokenize.values()
    assert len(pairs_of(plan)) == 2
    assert {**tokens.counts.failed} == {"equal_answers": 1}
    (indexed,) = chain.ingest.values()
    assert {**indexed.counts.failed} == {"equal_answers": 1}

    vision = load_vision_tokenizer("scenes")
    step = PlanLoader(plan, V, global_packs=1).step(0)
    assert not step.faults
    from io import BytesIO

    from PIL import Image

    for name in ("a.png", "b.png"):
        (codes,) = vision.encode_images(np.asarray(Image.open(BytesIO(pictures[name])).convert("RGB"))[None])
        rows_of = "".join(chr(int(code) + V.vision_base) for code in codes[0])
        assert rows_of in "".join(map(chr, step.micro_batches[0].input_ids.tolist()))
