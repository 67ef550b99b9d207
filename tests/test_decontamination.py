"""Decontamination: every copy of an evaluation sample goes, and nothing else is touched by it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image
from tests import tiny

from tokenmill.errors import RecipeError, RunError
from tokenmill.filters.contamination import WordSequences, equal
from tokenmill.filters.stars import NOBODY
from tokenmill.manifests.archive import ArchiveWriter
from tokenmill.manifests.takedowns import Identifier
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.checks import check_chain
from tokenmill.pipelines.kept import GcOptions, collect
from tokenmill.pipelines.takedown import TakedownOptions, take_down
from tokenmill.recipe import check_recipe

PASSAGE = "the quick brown fox jumps over the lazy dog while seven wizards quietly brew their potions at night"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of scenes, a few texts; an evaluation set of each, in a folder and in Parquet."""
    for name in ("data/scenes", "data/text", "exam", "quiz"):
        (tmp_path / name).mkdir(parents=True)
    for shard, keys in enumerate((("a", "b"), ("c", "a2"), ("d", "e"))):
        with ArchiveWriter(tmp_path / f"data/scenes/{shard:02d}.tar") as writer:
            for key in keys:
                seed = {"a": 1, "b": 12, "c": 13, "a2": 1, "d": 23, "e": 33}[key]
                writer.add(key, {"png": tiny.picture(seed), "txt": b"a scene"})
    (tmp_path / "exam/one.png").write_bytes(enlarged(1))
    (tmp_path / "exam/two.png").write_bytes(tiny.picture(23))
    (tmp_path / "exam/other.png").write_bytes(tiny.picture(99))
    texts = {"seen": f"Once I read: The quick, brown FOX {PASSAGE[20:]}. Indeed.", "own": "entirely other words " * 5,
             "short": PASSAGE[:40] + " and then something else happened"}  # fmt: skip
    lines = [json.dumps({"id": key, "text": text}) for key, text in texts.items()]
    (tmp_path / "data/text/texts.jsonl").write_text("\n".join(lines) + "\n")
    pl.DataFrame({"key": ["q1", "q2"], "question": [PASSAGE, "entirely other words " * 5]}).write_parquet(
        tmp_path / "quiz/questions.parquet"
    )
    return tmp_path


def enlarged(seed: int) -> bytes:
    """Return a scene that was scaled up and saved as JPEG: a near copy."""
    stream = BytesIO()
    small = Image.open(BytesIO(tiny.picture(seed))).convert("RGB")
    small.resize((128, 128), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def changes(folder: Path, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    exam = {"name": "exam", "kind": "images", "url": str(folder / "exam"), "max_distance": 4}
    quiz = {
        "name": "quiz",
        "kind": "parquet",
        "url": str(folder / "quiz"),
        "column": "question",
        "modality": "text",
        "ngram": 13,
    }
    sets = {"filter.image.decontaminate": [exam], "filter.text.decontaminate": [quiz]}
    return {"execution.unit_rows": 100, "filter.image.duplicates.max_distance": 2} | sets | dict(more or {})


def make(folder: Path, more: Mapping[str, Any] | None = None) -> Chain:
    value = tiny.recipe(folder / "data", str(folder / "root"), changes(folder, more), sources=["scenes", "text"])
    chain = Chain(recipe=check_recipe(value, "tiny"), options=ChainOptions(quiet=True))
    check_chain(chain)
    return chain


def fates(chain: Chain, source: str) -> dict[str, tuple[str, str]]:
    """Return key → (reason, what it is a copy of) of the dropped samples."""
    rows = pl.concat([chain.select[source].folder.read_rows(c) for c in chain.select[source].commits])
    dropped = rows.filter(pl.col("drop_reason").is_not_null())
    return {key: (reason, of) for key, reason, of in dropped.select("key", "drop_reason", "duplicate_of").rows()}


def records(folder: Path) -> Counter[str]:
    found = [p.relative_to(folder / "root").parts for p in (folder / "root").rglob("commits/*.json")]
    return Counter(f"{stage}/{source}" for stage, source, *_ in found)


def test_every_copy_of_an_evaluation_picture_goes_and_names_it(folder: Path) -> None:
    assert fates(make(folder), "scenes") == {
        "a": ("contaminated", "exam/one.png"),
        "a2": ("contaminated", "exam/one.png"),  # and not as a copy of `a`, which is gone itself
        "d": ("contaminated", "exam/two.png"),
    }


def test_text_with_the_words_of_an_evaluation_text_goes(folder: Path) -> None:
    assert fates(make(folder), "text") == {
        "seen": ("contaminated", "quiz/q1"),
        "own": ("contaminated", "quiz/q2"),
    }


def test_evaluation_samples_never_become_training_data(folder: Path) -> None:
    chain = make(folder)
    for stage in (chain.ingest, chain.scored, chain.select, chain.tokenize):
        assert set(stage) == {"scenes", "text"}
    assert chain.tokenize["scenes"].counts.out == 3
    assert chain.plan.num_packs
    assert records(folder)["ingest/evaluation.image.exam"] == 1


def test_changed_evaluation_set_runs_decontamination_and_what_depends_on_it(folder: Path) -> None:
    _ = make(folder).select
    before = records(folder)
    (folder / "exam/late.png").write_bytes(tiny.picture(33))
    chain = make(folder)
    assert fates(chain, "scenes")["e"] == ("contaminated", "exam/late.png")
    assert records(folder) - before == {
        "ingest/evaluation.image.exam": 1,
        "score/evaluation.image.exam": 1,
        "decontaminate/scenes": 3,
        "compare/image": 1,
        "duplicates/image": 1,
        "select/scenes": 1,
    }


def test_changed_threshold_of_a_rule_compares_nothing_again(folder: Path) -> None:
    _ = make(folder).select
    before = records(folder)
    _ = make(folder, {"filter.image.rules": {"resolution": "min_side_px >= 40"}}).select
    assert not [name for name in records(folder) - before if name.startswith(("decontaminate", "ingest", "score"))]


def test_appended_shard_costs_its_own_unit(folder: Path) -> None:
    _ = make(folder).select
    before = records(folder)
    with ArchiveWriter(folder / "data/scenes/03.tar") as writer:
        writer.add("f", {"png": tiny.picture(99), "txt": b"a scene"})
    assert fates(make(folder), "scenes")["f"] == ("contaminated", "exam/other.png")
    added = records(folder) - before
    assert (added["decontaminate/scenes"], added["select/scenes"], added["ingest/evaluation.image.exam"]) == (1, 1, 0)


def test_housekeeping_keeps_the_evaluation_sets(folder: Path) -> None:
    chain = make(folder)
    _ = chain.select
    sweep = collect(chain.recipe, GcOptions(older_than_s=0, old_settings=True), apply_it=True)
    assert sweep.doomed == []


@pytest.mark.parametrize(
    ("modality", "entry", "message"),
    [
        ("image", {"kind": "jsonl", "url": "x"}, r"decontaminate\[0\]: is of text, not of image"),
        ("image", {"kind": "images", "url": "x", "min_cosine": 0.9}, r"\[0\]\.min_cosine: needs the column clip_emb"),
        ("image", {"kind": "images", "url": "x", "exact": False}, r"\[0\]: says of no copy what it is"),
        ("image", {"kind": "images", "url": "x", "ngram": 13}, r"\[0\]\.ngram: is for texts"),
        ("text", {"kind": "jsonl", "url": "x", "max_distance": 3}, r"\[0\]\.max_distance: needs the column phash"),
        ("text", {"kind": "jsonl", "url": "x", "colour": 3}, r"decontaminate\.exam.*colour"),
        ("video", {"kind": "videos", "url": "x"}, r"video\.decontaminate\[0\]: clips are not compared"),
    ],
)
def test_evaluation_set_that_cannot_be_compared_is_refused(
    folder: Path, modality: str, entry: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        make(folder, {f"filter.{modality}.decontaminate": [{"name": "exam", **entry}]})
    assert not (folder / "root").exists()


def test_evaluation_set_named_like_a_source_is_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"decontaminate\[0\]\.name: 'scenes' is a source"):
        make(folder, {"filter.image.decontaminate": [{"name": "scenes", "kind": "images", "url": "x"}]})


def test_two_evaluation_sets_of_one_name_are_refused(folder: Path) -> None:
    entry = {"name": "exam", "kind": "images", "url": "x"}
    with pytest.raises(RecipeError, match="two sets have one name"):
        make(folder, {"filter.image.decontaminate": [entry, entry]})


def test_equal_digests_name_the_first() -> None:
    assert equal(pl.Series(["x", "b", "a"]), pl.Series(["a", "b", "a"])).tolist() == [NOBODY, 1, 0]


def test_word_sequences_cross_no_border_between_texts() -> None:
    known = WordSequences(["one two three four", "nine eight seven"], 3)
    asked = ["ONE, two: three!", "zero one two", "three nine eight seven", "", "one two", "two three four five"]
    assert known.find(asked).tolist() == [0, NOBODY, 1, NOBODY, NOBODY, 0]
    assert WordSequences(["too short"], 3).find(asked).tolist() == [NOBODY] * 6


def test_rewrite_leaves_no_name_of_an_evaluation_sample_that_is_taken_down(folder: Path) -> None:
    chain = make(folder)
    _ = chain.select
    assert "exam/one.png" in named_copies(folder)
    take_down(chain.recipe, [Identifier(kind="key", value="one.png")], TakedownOptions(rewrite=True))
    left = named_copies(folder)
    assert "exam/one.png" not in left
    assert "exam/two.png" in left


def named_copies(folder: Path) -> set[str]:
    """Return what any table under the root names as what a sample is a copy of."""
    tables = [pl.read_parquet(path) for path in (folder / "root").rglob("*.parquet") if "takedowns" not in path.parts]
    return {of for table in tables if "duplicate_of" in table.columns for of in table["duplicate_of"].drop_nulls()}


def test_evaluation_set_without_a_good_sample_warns(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in (folder / "exam").iterdir():
        path.write_bytes(b"")
    assert "contaminated" not in make(folder).select["scenes"].counts.dropped
    assert "evaluation set exam: holds no good sample" in caplog.text


def test_evaluation_text_that_changed_since_it_was_indexed_ends_the_run(folder: Path) -> None:
    path = folder / "quiz/questions.jsonl"
    path.write_text(json.dumps({"id": "q1", "text": PASSAGE}) + "\n")
    quiz = {"name": "quiz", "kind": "jsonl", "url": str(folder / "quiz"), "ngram": 13}
    chain = make(folder, {"filter.text.decontaminate": [quiz]})
    _ = chain.evaluation_sets
    path.write_text(json.dumps({"id": "q1", "text": PASSAGE.upper()}) + "\n")
    with pytest.raises(RunError, match="evaluation set quiz: a text is not what was indexed any more"):
        _ = chain.decontaminate
