"""`tokenmill inspect RECIPE`: the funnel, what other rules would do, SQL over annotations; nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests import tiny

from tokenmill.cli import main
from tokenmill.errors import ManifestError, RecipeError
from tokenmill.pipelines.annotations import run_sql
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.inspect_selection import inspect_recipe, render_selection
from tokenmill.recipe import Recipe, check_recipe

RULES = {
    "filter.image.rules": {
        "resolution": "min_side_px >= 48",
        "colour": {"keep": "colourfulness >= 45", "rescue": "width_px >= 70"},
        "spread": "colour_spread >= 0",
    }
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two sources, scored and selected, and their recipe."""
    folder = tmp_path_factory.mktemp("inspect")
    tiny.write_pictures(folder / "data")
    tiny.write_recipe(
        folder / "recipe.yaml", folder / "data", str(folder / "root"), RULES, sources=["scenes", "photos"]
    )
    _ = Chain(recipe=recipe(folder), options=ChainOptions(quiet=True)).select
    return folder


def recipe(folder: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    value = tiny.recipe(folder / "data", str(folder / "root"), RULES | (changes or {}), sources=["scenes", "photos"])
    return check_recipe(value, "tiny")


def looking(folder: Path, changes: Mapping[str, Any] | None = None) -> Chain:
    return Chain(recipe=recipe(folder, changes), options=ChainOptions(work=frozenset(), quiet=True))


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Return every file and folder with its size and time."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*")}


def test_funnel_adds_up_and_is_what_the_selection_counted(prepared: Path) -> None:
    found = inspect_recipe(recipe(prepared))["modalities"]["image"]
    select = looking(prepared).select
    for name, source in found["sources"].items():
        funnel, counts = source["funnel"], select[name].counts
        dropped = {rule: one["dropped"] for rule, one in funnel["rules"].items() if one["dropped"]}
        assert (funnel["in"], funnel["kept"], funnel["failed"]) == (counts.rows_in, counts.kept, dict(counts.failed))
        assert dropped | funnel["duplicates"] == counts.dropped
        assert funnel["in"] == funnel["kept"] + sum(counts.dropped.values()) + sum(counts.failed.values())
        rescued = {f"rescued.{rule}": one["rescued"] for rule, one in funnel["rules"].items() if one["rescued"]}
        assert rescued == select[name].totals
    total = found["total"]["funnel"]
    assert total["in"] == sum(source["funnel"]["in"] for source in found["sources"].values())
    assert total["rules"]["colour"]["rescued"] > 0
    assert total["rules"]["colour"]["dropped"] > 0


def test_what_each_rule_alone_would_drop_does_not_hang_on_the_others(prepared: Path) -> None:
    rules = {"filter.image.rules": {"small": "width_px < 70", "narrow": "width_px < 60 OR width_px > 70",
                                    "known": "phash IS NULL"}}  # fmt: skip
    found = inspect_recipe(recipe(prepared, rules))["modalities"]["image"]["sources"]
    photos, scenes = found["photos"]["funnel"]["rules"], found["scenes"]["funnel"]["rules"]
    assert (photos["small"]["dropped"], photos["small"]["alone"], photos["small"]["only"]) == (3, 3, 0)
    assert (photos["known"]["dropped"], photos["known"]["in"], photos["known"]["alone"]) == (0, 0, 3)
    assert (scenes["narrow"]["dropped"], scenes["narrow"]["only"]) == (11, 0)


def test_what_if_writes_nothing_and_foretells_the_selection(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "copy")
    folder = tmp_path / "copy"
    value = recipe(folder)
    before = state(folder)
    found = inspect_recipe(value, what_if=["colour=30.5", "photos/resolution: min_side_px >= 1000"])
    assert state(folder) == before
    changes = {"filter.image.rules": {**RULES["filter.image.rules"],
                                      "colour": {"keep": "colourfulness >= 30.5", "rescue": "width_px >= 70"}},
               "filter.image.sources": {"photos": {"rules": {"resolution": "min_side_px >= 1000"}}},
               "filter.image.duplicates": None}  # fmt: skip
    real = Chain(recipe=recipe(folder, changes), options=ChainOptions(quiet=True)).select
    for name, source in found["modalities"]["image"]["sources"].items():
        then, counts = source["what_if"], real[name].counts
        assert {rule: one["dropped"] for rule, one in then["rules"].items() if one["dropped"]} == counts.dropped
        assert then["kept"] + sum(then["duplicates"].values()) == counts.kept
        assert source["funnel"] != then
    assert [(c["source"], c["rule"], c["after"]) for c in found["what_if"]] == [
        ("scenes", "colour", "colourfulness >= 30.5"),
        ("photos", "colour", "colourfulness >= 30.5"),
        ("photos", "resolution", "min_side_px >= 1000"),
    ]
    assert any("not compared" in note for note in found["notes"])


def test_what_if_of_a_rescue_changes_who_is_rescued(prepared: Path) -> None:
    found = inspect_recipe(recipe(prepared), what_if=["colour.rescue=1000"])["modalities"]["image"]["total"]
    assert found["funnel"]["rules"]["colour"]["rescued"] > found["what_if"]["rules"]["colour"]["rescued"] == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("colour", "is rule=number or 'rule: expression'"),
        ("colours=3", r"no rule 'colours' \(did you mean 'colour'\?\); rules: colour, resolution, spread"),
        ("colour=high", "'high' is no number; an expression is given as 'colour: high'"),
        ("nobody/colour=3", "no source 'nobody'; allowed: image, photos, scenes"),
        ("colour: colorfulness > 3", "unknown column 'colorfulness'"),
        ("colour: avg(colourfulness) > 3", "more than one row"),
        ("two=3", "'width_px > 3 AND height_px > 4' compares with 2 numbers; give all of it"),
        ("none=3", "'NOT is_monochrome' compares with no numbers"),
        ("none.rescue=3", "there is no rescue"),
    ],
)
def test_what_if_that_makes_no_sense_says_why(prepared: Path, text: str, says: str) -> None:
    rules = {**RULES["filter.image.rules"]}
    if text.startswith(("two", "none")):
        rules |= {"two": "width_px > 3 AND height_px > 4", "none": "NOT is_monochrome"}
    with pytest.raises(RecipeError, match=says):
        inspect_recipe(recipe(prepared, {"filter.image.rules": rules}), what_if=[text])


def test_threshold_is_found_on_either_side_and_never_in_a_text(prepared: Path) -> None:
    rules = {"filter.image.rules": {"a": "-1.5e3 <= aspect", "b": "'x > 3' <> 'y' AND width_px >= 48"}}
    found = inspect_recipe(recipe(prepared, rules), what_if=["a=2", "b=49"])["what_if"]
    assert {change["after"] for change in found} == {"2 <= aspect", "'x > 3' <> 'y' AND width_px >= 49"}


def test_rule_that_two_modalities_have_is_named_with_one(tmp_path: Path) -> None:
    value = recipe(tmp_path)
    other = {"kind": "videos", "url": str(tmp_path)}
    both = check_recipe({**value.model_dump(), "sources": {**value.model_dump()["sources"], "clips": other}}, "tiny")
    with pytest.raises(RecipeError, match="image and video have such a rule; say image/resolution, video/resolution"):
        from tokenmill.pipelines.what_if import changed_rules

        changed_rules(Chain(recipe=both), ["resolution=3"])


def test_funnel_before_any_selection_says_that_copies_are_open(prepared: Path) -> None:
    rules = {"filter.image.rules": {"resolution": "min_side_px >= 2"}}
    found = inspect_recipe(recipe(prepared, rules))
    assert found["modalities"]["image"]["total"]["funnel"]["duplicates"] == {}
    assert any("copies are not decided" in note for note in found["notes"])


def test_sql_sees_scores_verdicts_and_index_of_all_sources(prepared: Path) -> None:
    chain = looking(prepared)
    found = run_sql(chain, "SELECT source, count(*) AS n, sum(CAST(keep AS INT)) AS kept FROM image GROUP BY source")
    assert {row[0]: row[1:] for row in found.rows()} == {
        name: (chain.select[name].counts.rows_in, chain.select[name].counts.kept) for name in ("photos", "scenes")
    }
    query = (
        "SELECT key, caption, width_px FROM image WHERE drop_reason IS NULL AND fail_reason IS NULL AND width_px > 70"
    )
    found = run_sql(chain, query)
    assert found.height == chain.select["photos"].counts.kept
    assert found["caption"].null_count() == 0
    assert run_sql(chain, "SELECT * FROM image").height == 16
    assert run_sql(chain, "SELECT key FROM image ORDER BY colourfulness DESC NULLS LAST LIMIT 3").height == 3
    both = run_sql(chain, "SELECT a.key FROM image AS a JOIN image AS b ON a.phash = b.phash WHERE a.key <> b.key")
    assert both.height == 2  # the copy among the scenes


@pytest.mark.parametrize(
    ("query", "same"),
    [
        ("SELECT key FROM (SELECT * FROM image LIMIT 4) t WHERE colourfulness > 0", slice(0, 4)),
        ("SELECT key FROM image WHERE colourfulness > 0 LIMIT 4", None),
    ],
)
def test_sql_with_a_limit_under_a_filter_counts_the_rows_before_it(
    prepared: Path, query: str, same: slice | None
) -> None:
    chain = looking(prepared)
    table = run_sql(chain, "SELECT key, colourfulness FROM image")
    some = table if same is None else table[same]
    assert run_sql(chain, query)["key"].to_list() == some.filter(pl.col("colourfulness") > 0)["key"].to_list()[:4]


def test_sql_before_any_selection_has_scores_and_no_verdicts(prepared: Path) -> None:
    chain = looking(prepared, {"filter.image.rules": {"other": "width_px > 1"}})
    found = run_sql(chain, "SELECT count(width_px) AS scored, count(keep) AS judged FROM image")
    assert found.row(0) == (14, 0)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("SELEC key FROM image", r"--sql: .*tables: image"),
        ("SELECT key FROM pictures", r"--sql: .*pictures.*tables: image"),
        ("SELECT beauty FROM image", r"--sql: .*beauty.*image has source, key, .*colourfulness"),
        ("SELECT key + 1 FROM image WHERE width_px > 'a'", r"--sql: "),
    ],
)
def test_sql_that_cannot_be_answered_says_what_there_is(prepared: Path, query: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        run_sql(looking(prepared), query)


def test_sql_over_a_damaged_table_names_the_file(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "copy")
    chain = looking(tmp_path / "copy")
    folder, commit = chain.scored["scenes"][0].scores[0]
    path = tmp_path / "copy/root" / folder.at(commit.rows.name)
    path.write_bytes(path.read_bytes()[:-20] + b"x" * 20)
    with pytest.raises(ManifestError, match=commit.rows.name):
        run_sql(chain, "SELECT avg(colourfulness) FROM image")


def test_inspect_command_tells_text_and_json_and_writes_nothing(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, before = str(prepared / "recipe.yaml"), state(prepared / "root")
    assert main(["inspect", path, "--what-if", "colour=40"]) == 0
    text = capsys.readouterr().out
    assert "image, all sources" in text
    assert "colour: colourfulness >= 45; rescued where width_px >= 70" in text
    assert "what if: scenes: colour: colourfulness >= 40  (is colourfulness >= 45)" in text
    assert main(["inspect", path, "--json", "filter.image.rules.colour=colourfulness >= 0"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["modalities"]["image"]["total"]["funnel"]["rules"]["colour"]["dropped"] == 0
    assert main(["inspect", path, "--sql", "SELECT source, avg(aspect) AS shape FROM image GROUP BY source"]) == 0
    assert sorted(line.split()[0] for line in capsys.readouterr().out.splitlines()) == ["photos", "scenes", "source"]
    assert state(prepared / "root") == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sql", "SELECT 1", "--what-if", "a=1"], "one at a time"),
        (["--key", "a"], "--key: does not go with a recipe"),
        (["--what-if", "nothing=1"], "recipe.yaml: --what-if 'nothing=1': no rule"),
    ],
)
def test_inspect_command_with_wrong_arguments_exits_2(
    prepared: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(["inspect", str(prepared / "recipe.yaml"), *arguments]) == 2
    assert says in capsys.readouterr().err


def test_inspect_of_a_folder_takes_no_query(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(prepared / "root"), "--sql", "SELECT 1"]) == 2
    assert "--sql: goes with a recipe" in capsys.readouterr().err


def test_inspect_of_a_selection_folder_shows_its_funnel(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot = looking(prepared).select["scenes"]
    assert main(["inspect", str(prepared / "root" / snapshot.folder.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["funnel"]
    assert [step["rule"] for step in found] == ["resolution", "colour", "spread"]
    assert found[1]["dropped"] == snapshot.counts.dropped["colour"]
    assert found[0]["in"] == snapshot.counts.rows_in - sum(snapshot.counts.failed.values())


def test_long_answers_are_cut_in_text_alone() -> None:
    rows = [{"key": str(number), "text": "x" * 100} for number in range(300)]
    text = render_selection({"columns": {"key": "String", "text": "String"}, "rows": rows})
    assert "100 rows more" in text
    assert max(map(len, text.splitlines())) < 90
