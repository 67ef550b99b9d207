"""Pairs of tokens that were drawn and voted on: the very ids come back in the plan, and what is none is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.test_pipelines_generation import PROMPTS, V, export

from tokenmill.cli import main
from tokenmill.errors import ManifestError, RecipeError, RunError, SampleError
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.dispatch import RunOptions
from tokenmill.pipelines.exported import find_export
from tokenmill.pipelines.foreign_tokens import index_work
from tokenmill.pipelines.generation import drawn_tokens, generate_pictures, generated_name
from tokenmill.pipelines.pair_archives import pairs_of_table, pairs_of_votes
from tokenmill.pipelines.pair_samples import pair_of_row
from tokenmill.pipelines.plan import write_plan
from tokenmill.pipelines.preference_votes import count_votes, voted_pairs
from tokenmill.pipelines.runner import run_stage
from tokenmill.recipe import Recipe, check_recipe
from tokenmill.settings_tokens import TokenShards
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.templates import PREFERENCE
from tokenmill.train.loader import PlanLoader


def recipe_of(root: Path, **more: Any) -> Recipe:
    settings = {"prompts": PROMPTS, "height": 16, "width": 24, "per_prompt": 3, "evaluate_documents": 0}
    value = {"root": str(root), "sources": {"none": {"kind": "images", "url": "nowhere"}}, "generate": settings,
             "tokenize": {"vocabulary": V.spec}, **more}  # fmt: skip
    return check_recipe(value, "test")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with an exported model of random weights that has drawn three pictures a prompt."""
    root = tmp_path_factory.mktemp("drawn")
    export(open_store(str(root)), tmp_path_factory.mktemp("model"), "none")
    generate_pictures(recipe_of(root))
    return root


def drawn_of(root: Path) -> pl.DataFrame:
    store, recipe = open_store(str(root)), recipe_of(root)
    return drawn_tokens(store, generated_name(find_export(store, "main"), recipe.generate))[1]


def voted(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "votes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def planned(store: Store, url: str) -> Any:
    work = index_work(store, "pairs", TokenShards(url=url), V.spec, None)
    ((snapshot,),) = run_stage("tokenize", [work], RunOptions(quiet=True))
    return snapshot, write_plan(store, [snapshot], PlanSettings(context=200))


def test_pairs_of_votes_bring_the_drawn_ids_of_best_and_worst_into_the_plan(root, tmp_path):
    drawn = drawn_of(root)
    files = drawn["file"].to_list()
    given = [
        (files[0], 2),
        (files[1], 5),
        (files[2], 1),
        (f"some/folder/{files[2]}", 0.5),
        (files[3], 3),
        (files[4], 3),
    ]
    votes = voted(tmp_path, [{"file": name, "votes": number} for name, number in given])
    made = pairs_of_votes(recipe_of(root), votes)
    assert made["pairs"] == 1 and made["left_out"] == {"tie": 1}
    assert pairs_of_votes(recipe_of(root), votes) == made

    snapshot, plan = planned(open_store(str(tmp_path / "root")), made["folder"])
    assert snapshot.counts.kept == 1
    assert [row.template for row in plan.documents(0)] == [PREFERENCE] * 2
    (pack,) = PlanLoader(plan, V, global_packs=1).step(0).micro_batches
    halves = [pack.input_ids[start:end] for start, end in zip(pack.cu_seqlens, pack.cu_seqlens[1:], strict=False)][:2]
    assert [half.tolist() for half in halves] == [drawn["ids"][1].to_list(), drawn["ids"][2].to_list()]


def test_pairs_command_writes_shards_where_it_is_told_and_refuses_a_folder_with_others(root, tmp_path, capsys):
    files = drawn_of(root)["file"].to_list()
    votes = voted(tmp_path, [{"file": files[0], "votes": 2}, {"file": files[1], "votes": 5}])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(json.loads(recipe_of(root).model_dump_json(exclude_defaults=True, by_alias=True))))
    command = ["pairs", str(recipe), "--votes", votes, "--to", str(tmp_path / "to")]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pairs"] == 1 and told["left_out"] == {"unvoted": 1}
    assert (tmp_path / "to" / told["shards"][0]).exists()
    assert main(command) == 0
    assert "1 pairs" in capsys.readouterr().out
    voted(tmp_path, [{"file": files[0], "votes": 9}, {"file": files[1], "votes": 5}])
    assert main(command) == 2
    assert "made of something else" in capsys.readouterr().err
    (tmp_path / "to" / "pairs.json").unlink()
    assert main(command) == 2
    assert "holds other shards" in capsys.readouterr().err


def test_votes_of_files_that_were_not_drawn_or_without_numbers_are_refused(root, tmp_path):
    for rows, told in (
        ([{"file": "999-000-aaaaaaaa.png", "votes": 1}], "is none of the 6 pictures"),
        ([{"file": "x.png", "votes": "many"}], "row 0 needs file"),
        ([{"file": "x.png", "votes": "nan"}], "row 0 needs file"),
        ([{"votes": 1}], "row 0 needs file"),
    ):
        with pytest.raises(RecipeError, match=told):
            pairs_of_votes(recipe_of(root), voted(tmp_path, rows))
    with pytest.raises(RecipeError, match="there is no such table"):
        pairs_of_votes(recipe_of(root), str(tmp_path / "nothing.jsonl"))
    with pytest.raises(RunError, match="no pair is left: unvoted 2"):
        pairs_of_votes(recipe_of(root), voted(tmp_path, [{"file": drawn_of(root)["file"][0], "votes": 1}]))
    nothing = recipe_of(root).model_copy(update={"generate": recipe_of(root).generate.model_copy(update={"seed": 9})})
    with pytest.raises(ManifestError, match="nothing was drawn yet"):
        pairs_of_votes(nothing, voted(tmp_path, [{"file": "x", "votes": 1}]))


def test_votes_are_added_up_over_judges_and_equal_pictures_make_no_pair(root):
    assert count_votes([{"file": "a/b.png", "votes": 1}, {"file": "b.png", "votes": "2.5"}], "x") == {"b.png": 3.5}
    drawn = drawn_of(root)
    same = drawn.with_columns(ids=pl.Series([drawn["ids"][0].to_list()] * len(drawn)))
    pairs, _ = voted_pairs(same, {name: number for number, name in enumerate(drawn["file"])}, V)
    from tokenmill.pipelines.pair_samples import pair_sample

    with pytest.raises(SampleError) as found:
        pair_sample(pairs[0])
    assert found.value.reason == "equal_answers"


def test_votes_compare_only_what_was_asked_for_in_one_size(root):
    drawn = drawn_of(root).head(2)
    (first, second), sot = drawn["ids"].to_list(), V.sot
    other = [*first[: first.index(sot) - 1], 9, *second[second.index(sot) :]]
    mixed = drawn.with_columns(ids=pl.Series([first, other]))
    pairs, left_out = voted_pairs(mixed, dict(zip(drawn["file"], (1, 2), strict=True)), V)
    assert pairs == [] and left_out == {"unvoted": 2}


def codes(*values: int, **more: Any) -> dict[str, Any]:
    return {"codes": list(values), "grid": [1, len(values)], **more}


def test_pairs_of_a_table_are_tokens_as_they_stand_there(root, tmp_path):
    rows = [
        {"key": "one", "prompt": "A box.", "chosen": codes(1, 2), "rejected": codes(3, 4), "judge": "me"},
        {"prompt": {"ids": [65, 66]}, "chosen": {"ids": [67, 68]}, "rejected": {"ids": [69]}},
        {"prompt": "A box.", "chosen": codes(1, 2), "rejected": codes(1, 2)},
        {"prompt": "A box.", "chosen": codes(1, 9_999), "rejected": codes(1, 2)},
        {"prompt": "A box.", "chosen": codes(1, 2)},
    ]
    table = tmp_path / "pairs.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = pairs_of_table(recipe_of(root), str(table), str(tmp_path / "to"))
    assert made["pairs"] == 2
    assert made["left_out"] == {"bad_pair": 1, "equal_answers": 1, "out_of_range": 1}

    _, plan = planned(open_store(str(tmp_path / "root")), str(tmp_path / "to"))
    step = PlanLoader(plan, V, global_packs=1).step(0)
    shown = "".join(map(chr, step.micro_batches[0].input_ids.tolist()))
    for wanted in ("A box.", "assistant. USER: AB. ASSISTANT:CD", "assistant. USER: AB. ASSISTANT:E"):
        assert wanted in shown
    assert "".join(chr(V.vision_base + code) for code in (1, 2)) in shown
    assert "".join(chr(V.vision_base + code) for code in (3, 4)) in shown


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": codes(1), "rejected": "a text"}, "bad_pair"),
        ({"chosen": {"codes": [1, 2, 3], "grid": [2, 2]}, "rejected": codes(1)}, "bad_pair"),
        ({"chosen": {"codes": [1, 2], "grid": [2, 1, 1]}, "rejected": codes(1)}, "bad_pair"),
        ({"chosen": {"codes": [[1], [2, 3]], "grid": [1, 3]}, "rejected": codes(1)}, "bad_pair"),
        ({"chosen": {"ids": [1.5]}, "rejected": codes(1)}, "bad_pair"),
        ({"prompt": {"ids": [-1]}, "chosen": codes(1), "rejected": codes(2)}, "out_of_range"),
    ],
)
def test_row_that_is_no_pair_of_tokens_says_why(row, reason):
    with pytest.raises(SampleError) as found:
        pair_of_row("key", row, V)
    assert found.value.reason == reason


def test_row_with_clips_keeps_their_rate_and_length():
    clip = {"codes": [1, 2], "grid": [2, 1, 1], "fps": 8, "seconds": 1.0}
    pair = pair_of_row("key", {"chosen": clip, "rejected": clip | {"codes": [2, 1]}}, V)
    assert (pair.chosen.fps, pair.chosen.seconds) == (8, 1.0)
    assert np.array_equal(pair.rejected.codes_thw, np.array([2, 1]).reshape(2, 1, 1))
