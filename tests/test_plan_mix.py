"""How much of each source a plan takes: shares of tokens, caps, epochs, templates by source, and what cannot be met."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.drawing import drawn_of

from tokenmill.demo.tokens import Amounts, write_shards, write_token_source
from tokenmill.errors import RecipeError
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.pipelines.plan_exclusion import NOTHING, Exclusion, read_exclusion
from tokenmill.pipelines.plan_figures import told_plan, warnings_of
from tokenmill.pipelines.plan_measure import measure_source
from tokenmill.pipelines.plan_mix import MIX_FILE, SourceTokens, solve_mix
from tokenmill.settings_mix import SourceMix
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.segments import TextSegment, VisionSegment, segments_to_json
from tokenmill.tokenize.vocabulary import byte_vocabulary

V = byte_vocabulary(64)
SHARES = {
    "pictures": {"share": 0.3, "max_epochs": 2},
    "words": {"share": 0.5},
    "clips": {"share": 0.2, "max_epochs": 9},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(str(tmp_path_factory.mktemp("mix")))


@pytest.fixture(scope="module")
def sources(store: Store) -> list[Snapshot]:
    return [
        write_token_source(store, "pictures", V, Amounts(images=2500, shards=5)),
        write_token_source(store, "words", V, Amounts(texts=3000, text_words=60, shards=5)),
        write_token_source(store, "clips", V, Amounts(clips=400, shards=2)),
    ]


def settings(**changes) -> PlanSettings:
    return PlanSettings(**{"context": 1024, "mix": SHARES, **changes})


def shares_of(plan: Plan) -> dict[str, float]:
    sources = plan.description["sources"]
    return {name: one["tokens"] / sum(o["tokens"] for o in sources.values()) for name, one in sources.items()}


def rows_of(plan: Plan) -> list[tuple]:
    return [(d.source, d.sample, d.repetition, d.template, d.variant) for p in range(plan.num_packs)
            for d in plan.documents(p) if d.start == 0]  # fmt: skip


@pytest.mark.parametrize("held_out", [0.0, 0.1])
def test_mix_of_shares_gives_them_to_a_percent(store, sources, held_out):
    plan = write_plan(store, sources, settings(held_out=held_out))
    for name, share in shares_of(plan).items():
        assert abs(share / SHARES[name]["share"] - 1) < 0.01
    about = plan.description["sources"]
    assert max(one["epochs"] / SHARES[name].get("max_epochs", 1) for name, one in about.items()) == 1.0  # first at cap
    for one in about.values():
        assert one["epochs_got"] == pytest.approx(one["epochs"], rel=0.03)
    assert {name: one["share_asked"] for name, one in about.items()} == {n: s["share"] for n, s in SHARES.items()}
    assert plan.description["tokens_asked"] == pytest.approx(plan.description["totals"]["tokens"], rel=0.01)


def test_mix_with_a_number_of_tokens_has_as_many(store, sources):
    plan = write_plan(store, sources, settings(tokens="2e5"))
    assert plan.description["totals"]["tokens"] == pytest.approx(200_000, rel=0.02)
    assert all(one["epochs"] < 1 for one in plan.description["sources"].values())


def test_mix_of_shares_beside_epochs_gives_those_the_rest(store, sources):
    mix = {"pictures": {"share": 0.4, "max_epochs": 3}, "words": 0.5, "clips": 0}
    plan = write_plan(store, sources, settings(mix=mix))
    assert shares_of(plan)["pictures"] == pytest.approx(0.4, abs=0.01)
    assert plan.description["sources"]["words"]["epochs"] == 0.5
    assert plan.description["sources"]["clips"]["tokens"] == 0


def test_measured_tokens_of_a_pass_are_those_of_a_plan_of_one_epoch(store, sources):
    split = settings(mix={}, context=200, split_long_clips=True, held_out=0.2)
    plan = write_plan(store, sources, split)
    for snapshot in sources:
        found = measure_source(snapshot, split, V, NOTHING)
        got = plan.description["sources"][snapshot.folder.source]
        assert found.tokens == pytest.approx(got["tokens"], rel=0.02)
        assert found.samples == got["samples"]
    assert plan.description["sources"]["clips"]["documents"] == 2 * plan.description["sources"]["clips"]["samples"]


def test_measured_tokens_of_many_shards_are_told_with_their_error(tmp_path):
    store = open_store(str(tmp_path))
    source = write_token_source(store, "words", V, Amounts(texts=1000, shards=100))
    found = measure_source(source, settings(mix={}), V, NOTHING)
    plan = write_plan(store, [source], settings(mix={}))
    assert (found.files, found.read) == (100, 64)
    assert 0 < found.error < 0.1
    assert abs(found.tokens / plan.description["totals"]["tokens"] - 1) < 3 * found.error


def test_mix_is_counted_once_and_found_again_where_it_was_damaged(tmp_path):
    store = open_store(str(tmp_path))
    source = write_token_source(store, "words", V, Amounts(texts=200))
    asked = settings(mix={"words": {"share": 1.0}}, tokens=5_000)
    plan = write_plan(store, [source], asked)
    name = plan.folder.at(MIX_FILE)
    before = store.read_bytes(name)
    store.put(name, before.replace(b'"epochs"', b'"epoch"'))
    for path in ("plan.json", "windows.parquet"):
        (tmp_path / plan.folder.at(path)).unlink()
    again = write_plan(store, [source], asked)
    assert again.description == plan.description
    assert store.read_bytes(name) == before


MADE = {"a": 1000.0, "b": 4000.0, "c": 0.0}


def solved(tokens: int | None = None, **mix):
    said = {name: SourceMix(**one) for name, one in mix.items()}
    made = {name: SourceTokens(tokens=n, samples=n / 10, files=1, read=1) for name, n in MADE.items()}
    return solve_mix(said, made, tokens)


@given(st.floats(0.01, 0.99), st.floats(0.1, 8), st.floats(0.1, 8))
def test_solved_mix_meets_shares_and_caps_and_takes_the_most(share, most_a, most_b):
    mix = solved(a={"share": share, "max_epochs": most_a}, b={"share": 1 - share, "max_epochs": most_b})
    tokens = {name: mix.epochs[name] * MADE[name] for name in mix.epochs}
    assert tokens["a"] / sum(tokens.values()) == pytest.approx(share, rel=1e-6)
    assert mix.epochs["a"] <= most_a and mix.epochs["b"] <= most_b
    assert mix.epochs["a"] == pytest.approx(most_a) or mix.epochs["b"] == pytest.approx(most_b)


@given(st.floats(0.05, 0.95), st.floats(0.1, 3))
def test_solved_mix_beside_epochs_gives_the_share_of_all(share, epochs):
    assume(share / (1 - share) * epochs * MADE["b"] / MADE["a"] < 99)
    mix = solved(a={"share": share, "max_epochs": 99}, b={"epochs": epochs})
    assert mix.epochs["b"] == epochs
    assert mix.epochs["a"] * MADE["a"] / mix.tokens == pytest.approx(share)


@pytest.mark.parametrize(
    ("tokens", "mix", "told"),
    [
        (4000, {"a": {"share": 0.5}, "b": {"share": 0.5}},
         ["plan.mix.a", "0.5 of 4,000", "2 epochs", "the 1,000", "max_epochs is 1", "2,000 tokens (plan.tokens"]),
        (None, {"a": {"share": 0.9}, "b": {"epochs": 1}}, ["plan.mix.a", "36,000", "36 epochs", "1,000"]),
        (None, {"a": {"share": 0.5}, "c": {"share": 0.5}}, ["plan.mix.c.share", "it is empty"]),
        (9000, {"a": {"share": 0.5, "max_epochs": 9}, "b": {"epochs": 1}},
         ["plan.tokens", "4,500 to b", "4,000", "8,000"]),
    ],
)  # fmt: skip
def test_mix_that_cannot_be_met_is_refused_with_what_is_there(tokens, mix, told):
    with pytest.raises(RecipeError) as caught:
        solved(tokens, **mix)
    for part in told:
        assert part in str(caught.value)


def test_mix_of_a_source_whose_documents_are_all_too_long_is_refused_or_told(store, sources):
    with pytest.raises(RecipeError, match=r"plan\.mix\.clips\.share: none of its 400 samples.*too_long 400"):
        write_plan(store, sources, settings(context=150))
    plan = write_plan(store, sources, settings(context=150, mix={}))
    assert warnings_of(plan.description) == ["no document of clips is in the plan (too_long 400)"]
    assert any("look at this: no document of clips" in line for line in told_plan(plan.description))


def test_mix_of_a_source_without_tokens_is_refused_by_name(store, sources):
    with pytest.raises(RecipeError, match=r"plan\.mix\.photos: nothing of it is tokenized.*pictures, words"):
        write_plan(store, sources, settings(mix={"photos": 1}))
    with pytest.raises(RecipeError, match=r"missing: clips, words"):
        write_plan(store, sources, settings(mix={"pictures": {"share": 1}}))
    assert write_plan(store, sources, settings(mix={"photos": 0, "clips": 0})).num_packs


def test_templates_of_a_source_come_before_those_of_its_modality(store, sources):
    mix = {"pictures": {"epochs": 1, "templates": {"unconditional": 1}}, "words": 0}
    plan = write_plan(store, sources, settings(mix=mix))
    drawn = Counter((source, template) for source, _, _, template, _ in rows_of(plan))
    assert {template for source, template in drawn if source == "pictures"} == {"unconditional"}
    assert {template for source, template in drawn if source == "clips"} > {"generation", "understanding"}
    assert plan.description["templates"]["unconditional"]["documents"] >= 2500


def captioned(count: int) -> dict[str, str]:
    segments = [*(TextSegment(0, 9, "caption", variant=n) for n in range(count)), VisionSegment(1, 2, 2, 0)]
    return {"modality": "image", "segments": json.dumps(segments_to_json(segments))}


def test_captions_are_any_or_the_first_or_another_in_each_repetition():
    rows = [{"key": f"k{n}", **captioned(3)} for n in range(300)]
    found = {}
    for captions in ("random", "first", "cycle"):
        said = PlanSettings(captions=captions, templates={"image": {"generation": 1}})
        found[captions] = [drawn_of(rows, said, V, repetition=n)[0].variant for n in range(3)]
    assert not np.any(found["first"])
    cycled = np.sort(np.stack(found["cycle"]), axis=0)
    assert (cycled == np.array([[0], [1], [2]])).all(), "each sample shows each caption once in three repetitions"
    assert min(np.bincount(found["cycle"][0])) > 60, "and does not begin with the same one"
    assert min(np.bincount(found["random"][0])) > 60
    assert len({tuple(sorted(one)) for one in zip(*found["random"], strict=True)}) == 10


def written(path: Path, names: list[str], kind: str) -> Path:
    if kind == "parquet":
        pl.DataFrame({"key": [name.rpartition("/")[2] for name in names],
                      "source": [name.rpartition("/")[0] or None for name in names]}).write_parquet(path)  # fmt: skip
    elif kind == "jsonl":
        told = [{"key": name} for name in names]
        path.write_text("".join(json.dumps(one) + "\n" for one in told))
    else:
        path.write_text("\r\n".join([*names, "", " "]))
    return path


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_excluded_samples_are_left_out_whatever_the_list_is_written_in(tmp_path, kind):
    store = open_store(str(tmp_path / "store"))
    source = write_token_source(store, "words", V, Amounts(texts=30))
    names = ["words-text-000003", "words/words-text-000004", "other/words-text-000005"]
    path = written(tmp_path / f"list.{kind}", names, kind)
    plan = write_plan(store, [source], PlanSettings(exclude_files=(str(path),)))
    assert plan.description["counts"]["dropped"] == {"excluded": 2}
    assert plan.description["sources"]["words"]["dropped"] == {"excluded": 2}
    moved = path.rename(tmp_path / "elsewhere")
    again = write_plan(store, [source], PlanSettings(exclude_files=(str(moved),)))
    assert again.plan_id == plan.plan_id, "a list is its names, not its file"
    assert again.plan_id == write_plan(store, [source], PlanSettings(exclude=tuple(names))).plan_id
    assert write_plan(store, [source], PlanSettings(exclude=tuple(names[:1]))).plan_id != plan.plan_id


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b'{"key": "a"}\n{"name": "b"}\n', "line 2"),
        (b'{"key": "a"}\n{"key":\n', "line 2"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"PAR1 and nothing more", "table"),
    ],
)
def test_list_of_excluded_samples_that_is_none_is_refused_by_name(tmp_path, data, told):
    (tmp_path / "list").write_bytes(data)
    with pytest.raises(RecipeError, match=rf"plan\.exclude_files: .*list: .*{told}"):
        read_exclusion(PlanSettings(exclude_files=(str(tmp_path / "list"),)))
    with pytest.raises(RecipeError, match=r"plan\.exclude_files: .*absent"):
        read_exclusion(PlanSettings(exclude_files=(str(tmp_path / "absent"),)))


@given(st.sets(st.text("ab/", min_size=1, max_size=3)), st.lists(st.text("ab/", max_size=3), max_size=20))
def test_exclusion_holds_exactly_its_names(names, keys):
    exclusion = Exclusion(pl.Series("name", sorted(names), pl.String))
    found = exclusion.mask("a", pl.Series("key", keys, pl.String))
    assert found.tolist() == [key in names or f"a/{key}" in names for key in keys]


def made(store: Store, source: str, count: int, modality: str, *segments) -> Snapshot:
    """Write a source of equal samples."""
    ids, codes = np.zeros(99, np.uint32), np.zeros(99, np.uint16)
    return write_shards(store, source, V, [[(f"{n}", modality, list(segments), ids, codes) for n in range(count)]])


def test_mix_of_samples_without_an_id_counts_none_of_their_markers(tmp_path):
    store = open_store(str(tmp_path))
    words = write_token_source(store, "words", V, Amounts(texts=100))
    source = made(store, "void", 5, "text", TextSegment(0, 0, "body"))
    plan = write_plan(store, [words, source], settings(mix={}))
    assert plan.description["sources"]["void"]["dropped"] == {"empty": 5}
    with pytest.raises(RecipeError, match=r"plan\.mix\.void\.share: none of its 5 samples.*\(empty 5\)"):
        write_plan(store, [words, source], settings(mix={"words": {"share": 0.5}, "void": {"share": 0.5}}))
    with pytest.raises(RecipeError, match=r"plan\.mix: .*rest is void, which has no document"):
        write_plan(store, [words, source], settings(mix={"words": {"share": 0.5}, "void": 1}))


def test_measured_samples_of_several_captions_are_counted_once(tmp_path):
    captions = [TextSegment(n, n + 9, "caption", variant=n) for n in range(3)]
    source = made(open_store(str(tmp_path)), "pictures", 50, "image", *captions, VisionSegment(1, 8, 8, 0))
    found = measure_source(source, settings(mix={}, context=40), V, NOTHING)
    assert (found.tokens, found.reasons) == (0, {"too_long": pytest.approx(50)})


def test_mix_of_more_passes_than_fit_into_memory_is_refused(store, sources):
    with pytest.raises(RecipeError, match=r"plan\.mix\.words: 1e\+09 epochs are 5,000,000,000 passes"):
        write_plan(store, sources, settings(mix={"words": 1e9}))


def test_excluded_sample_after_a_byte_order_mark_is_known(tmp_path):
    (tmp_path / "list.txt").write_bytes("\ufefffirst\r\nsecond".encode())
    found = read_exclusion(PlanSettings(exclude_files=(str(tmp_path / "list.txt"),)))
    assert found.names.to_list() == ["first", "second"]
