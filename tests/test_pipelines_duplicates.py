"""Stages compare and duplicates: who survives, what a change costs, and that it does not matter where it ran."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from tests import tiny
from tests.harness import faults_in

from tokenmill.errors import RecipeError, RunError
from tokenmill.filters.preference import Preference
from tokenmill.manifests.archive import ArchiveWriter
from tokenmill.manifests.storage import open_store
from tokenmill.manifests.takedowns import Identifier
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.checks import check_chain
from tokenmill.pipelines.compare import moved
from tokenmill.pipelines.compare_kinds import EXACT, NEAR, SEMANTIC, TEXT, Stars, gathered
from tokenmill.pipelines.compare_read import matrix
from tokenmill.pipelines.parts import RayParts
from tokenmill.pipelines.ray_cluster import RayPool, stop_ray
from tokenmill.pipelines.takedown import TakedownOptions, take_down
from tokenmill.recipe import check_recipe

COLUMNS = {"width_px": pl.Int32(), "height_px": pl.Int32(), "colourfulness": pl.Float32(), "monochrome": pl.Boolean()}


def write_shard(path: Path, seeds: Mapping[str, int | tuple[int, int]]) -> None:
    """Write a shard of scenes: key → seed, or seed and side in pixels."""
    with ArchiveWriter(path) as writer:
        for key, seed in seeds.items():
            picture = tiny.picture(seed) if isinstance(seed, int) else enlarged(*seed)
            writer.add(key, {"png": picture, "txt": b"a scene"})


def enlarged(seed: int, side_px: int) -> bytes:
    """Return a scene that was scaled up: a near copy."""
    stream = BytesIO()
    small = Image.open(BytesIO(tiny.picture(seed)))
    small.resize((side_px, side_px), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five shards of four pictures: two exact copies across shards, and one picture twice at other sizes."""
    shards = tmp_path / "data/scenes"
    shards.mkdir(parents=True)
    for shard in range(5):
        seeds: dict[str, Any] = {f"{shard}-{number}": 10 * shard + number for number in range(4)}
        write_shard(shards / f"{shard:02d}.tar", seeds | ({"3-9": 1, "3-8": (12, 128)} if shard == 3 else {}))
    return tmp_path


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Let the tests of this file share what cluster they start."""
    yield
    stop_ray()


def make(folder: Path, changes: Mapping[str, Any] | None = None, **options: Any) -> Chain:
    wanted = {"filter.image.duplicates.max_distance": 4, "execution.unit_rows": 100} | dict(changes or {})
    value = tiny.recipe(folder / "data", str(folder / "root"), wanted, sources=["scenes"])
    chain = Chain(recipe=check_recipe(value, "tiny"), options=ChainOptions(quiet=True, **options))
    check_chain(chain)
    return chain


def fates(chain: Chain) -> dict[str, tuple[str, str]]:
    """Return key → (reason, what it is a copy of) of the dropped samples, as stored by select."""
    rows = pl.concat([chain.select["scenes"].folder.read_rows(c) for c in chain.select["scenes"].commits])
    dropped = rows.filter(pl.col("drop_reason").is_not_null())
    return {key: (reason, of) for key, reason, of in dropped.select("key", "drop_reason", "duplicate_of").rows()}


def records(folder: Path) -> Counter[str]:
    return Counter(p.relative_to(folder).parts[1] for p in (folder / "root").rglob("commits/*.json"))


def digests(chain: Chain) -> dict[str, str]:
    return {s.folder.path: s.digest for stage in ("compare", "duplicates", "select") for s in chain.snapshots(stage)}


def test_copies_name_the_larger_or_the_first(folder: Path) -> None:
    assert fates(make(folder)) == {
        "3-9": ("exact_duplicate", "scenes/0-1"),
        "1-2": ("near_duplicate", "scenes/3-8"),
    }


def test_survivor_is_chosen_by_the_recipes_rule(folder: Path) -> None:
    chain = make(folder, {"filter.image.duplicates.prefer": ["width_px * height_px ASC"]})
    assert fates(chain)["3-8"] == ("near_duplicate", "scenes/1-2")


def test_rule_of_several_expressions_orders_by_each_in_turn_and_missing_values_last() -> None:
    table = pl.DataFrame({"colourfulness": [1.0, float("nan"), 3.0, 3.0], "width_px": [5, 9, 1, 2]})
    rule = Preference.parse(["colourfulness desc", "width_px"], COLUMNS)
    values = rule.values(table).with_row_index("row")
    found = values.sort(rule.names, descending=list(rule.descending), nulls_last=True)["row"].to_list()
    assert found == [2, 3, 0, 1]
    assert rule.columns == {"colourfulness", "width_px"}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("aesthetics DESC", r"filter\.image\.duplicates\.prefer\[0\]: unknown column 'aesthetics'"),
        ("max(width_px) DESC", r"prefer\[0\].*more than one row"),
        ("width_px DESC DESC", r"prefer\[0\].*names two directions"),
        ("1 DESC", r"prefer\[0\].*reads no column"),
    ],
)
def test_survivor_rule_that_cannot_be_is_refused_before_anything_starts(folder: Path, rule: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make(folder, {"filter.image.duplicates.prefer": [rule]})
    assert not (folder / "root").exists()


@pytest.mark.parametrize("kind", [{"semantic": {}}, {"text": {"min_jaccard": 0.7}}])
def test_kind_of_copies_without_its_column_is_refused(folder: Path, kind: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"filter\.image\.duplicates\.\w+: needs the column \w+; add the scorer"):
        make(folder, {"filter.image.duplicates": kind})


def test_appended_and_inserted_shards_write_their_own_units_alone(folder: Path) -> None:
    _ = make(folder).select
    before = records(folder)
    write_shard(folder / "data/scenes/05.tar", {"5-0": 50, "5-1": 51})
    write_shard(folder / "data/scenes/06.tar", {"6-0": 0})  # a copy of what was kept: dropped itself
    write_shard(folder / "data/scenes/01b.tar", {"1b-0": 60})
    chain = make(folder)
    assert fates(chain)["6-0"] == ("exact_duplicate", "scenes/0-0")
    added = records(folder) - before
    assert added == {"ingest": 3, "score": 9, "compare": 1, "duplicates": 3, "select": 3}


def test_better_copy_that_comes_later_changes_nothing_unless_asked(folder: Path) -> None:
    _ = make(folder).select
    write_shard(folder / "data/scenes/05.tar", {"5-0": (13, 128)})
    assert fates(make(folder))["5-0"] == ("near_duplicate", "scenes/1-3")
    afresh = make(folder, {"filter.image.duplicates.keep_earlier": False})
    assert fates(afresh)["1-3"] == ("near_duplicate", "scenes/5-0")


def test_kept_samples_stay_kept_when_slices_are_cut_anew(folder: Path) -> None:
    before = fates(make(folder))
    write_shard(folder / "data/scenes/00.tar", {"0-9": 1, **{f"0-{number}": number for number in range(4)}})
    write_shard(folder / "data/scenes/000.tar", {"00": (3, 128)})
    found = fates(make(folder, {"execution.unit_rows": 3}))
    assert before.items() <= found.items()
    assert found["0-9"] == ("exact_duplicate", "scenes/0-1")
    assert found["00"] == ("near_duplicate", "scenes/0-3")


def test_threshold_that_changes_no_verdict_writes_no_unit(folder: Path) -> None:
    first = digests(make(folder))
    before = records(folder)
    second = digests(make(folder, {"filter.image.rules": {"resolution": "min_side_px >= 47"}}))
    assert records(folder) - before == {"compare": 1, "select": 5}
    path = next(path for path in first if path.startswith("duplicates/"))
    assert first[path] == second[path]


def test_going_back_gives_the_same_decision(folder: Path) -> None:
    first = digests(make(folder))
    _ = make(folder, {"filter.image.rules": {"resolution": "min_side_px >= 65"}}).select
    before = records(folder)
    assert digests(make(folder)) == first
    assert records(folder) == before


@pytest.mark.ray
@pytest.mark.slow
def test_comparison_on_ray_gives_the_bytes_of_inline_for_one_and_two_workers(folder: Path, local_ray: None) -> None:
    def files(root: str) -> dict[str, bytes]:
        paths = [p for stage in ("compare", "duplicates", "select") for p in (folder / root / stage).rglob("*")]
        return {
            str(p.relative_to(folder / root)): p.read_bytes() for p in paths if p.is_file() and "logs" not in p.parts
        }

    _ = make(folder).select
    wanted = files("root")
    for workers in (2, 1):
        for stage in ("compare", "duplicates", "select"):
            shutil.rmtree(folder / "root" / stage)
        pools = {"compare": {}, "duplicates": {}}  # so few samples would be compared in this process otherwise
        changes = {"execution.executor": "ray", "execution.workers": workers, "execution.pools": pools}
        _ = make(folder, changes).select
        assert files("root") == wanted


@pytest.mark.ray
@pytest.mark.slow
def test_part_whose_worker_dies_is_handed_out_again_and_stays_in_its_place(tmp_path: Path, local_ray: None) -> None:
    parts = [(str(tmp_path / "died"), number) for number in range(6)]
    pool = RayPool(workers=2, cpus=1.0)
    assert list(RayParts(pool=pool)(square_or_die, parts)) == [0, 1, 4, 9, 16, 25]
    assert (tmp_path / "died").exists()
    with pytest.raises(RunError, match="no such part"):
        list(RayParts(pool=pool)(square_or_die, [("", 1), ("", 2)]))


def square_or_die(part: tuple[str, int]) -> int:
    place, number = part
    if not place:
        raise RunError("no such part")
    if number == 3 and not Path(place).exists():
        Path(place).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def test_copy_of_a_copy_names_who_is_kept_and_the_weakest_reason() -> None:
    stars = Stars(6)
    stars.drop(EXACT, np.arange(6), np.array([0, 1, 1, 3, 4, 5]))  # 2 is 1's
    stars.drop(NEAR, stars.left, np.array([0, 0, 2, 3, 4]))  # 1 is 0's
    assert stars.left.tolist() == [0, 3, 4, 5]
    stars.drop(TEXT, stars.left, np.array([0, 0, 2, 2]))  # 3 is 0's, 5 is 4's
    dropped, of, kinds = stars.settled()
    assert (dropped.tolist(), of.tolist()) == ([1, 2, 3, 5], [0, 0, 0, 4])
    assert kinds.tolist() == [NEAR, NEAR, TEXT, TEXT]


def test_vectors_are_laid_down_in_the_order_of_the_samples(tmp_path: Path) -> None:
    parts: list[tuple[Any, Any]] = [
        (np.array([[1, 1], [2, 2]], np.float16), np.array([True, False, True])),
        (np.empty((0, 0), np.float32), np.array([False])),
        (np.array([[3, 3]], np.float16), np.array([True])),
    ]
    where = [np.array([4, 1, 0]), np.array([2]), np.array([3])]
    values, there = gathered(iter(parts), where, 5, tmp_path / "vectors.npy")
    assert there.tolist() == [True, False, False, True, True]
    assert values.tolist() == [[2, 2], [3, 3], [1, 1]]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """One shard of two pictures; `a` has larger copies to come."""
    (tmp_path / "data/scenes").mkdir(parents=True)
    append(tmp_path, 0, {"a": 3, "b": 4})
    return tmp_path


def append(folder: Path, shard: int, seeds: Mapping[str, int | tuple[int, int]]) -> None:
    write_shard(folder / f"data/scenes/{shard:02d}.tar", seeds)


LARGER = {"big": (3, 128)}
KEPT = {"big": ("near_duplicate", "scenes/a")}
NO_VERDICT = {"filter.image.rules": {"resolution": "min_side_px >= 47"}}


def test_better_copy_after_a_rule_that_changed_no_verdict_does_not_displace_what_was_kept(small: Path) -> None:
    _ = make(small).select
    _ = make(small, NO_VERDICT).select
    append(small, 1, LARGER)
    assert fates(make(small, NO_VERDICT)) == KEPT
    append(small, 2, {"c": 5})
    assert fates(make(small)) == KEPT  # back to the first rules: a decision of theirs, stored under the others
    append(small, 3, {"bigger-c": (5, 128)})
    assert fates(make(small)) == KEPT | {"bigger-c": ("near_duplicate", "scenes/c")}


def test_verdicts_first_stored_under_other_rules_are_followed_by_the_rules_that_came_to_them_too(small: Path) -> None:
    _ = make(small).select
    append(small, 1, {"c": 5})
    _ = make(small, NO_VERDICT).select
    _ = make(small).select  # the same verdicts, so their snapshot tells of the other rules
    append(small, 2, {"bigger-c": (5, 128)})
    assert fates(make(small)) == {"bigger-c": ("near_duplicate", "scenes/c")}


def test_run_killed_between_decision_and_verdicts_forgets_nothing_when_data_comes(small: Path) -> None:
    _ = make(small).select
    append(small, 1, {"c": 5})
    _ = make(small).compare
    append(small, 2, LARGER)
    assert fates(make(small)) == KEPT


def test_rule_that_was_tried_and_undone_leaves_no_trace(small: Path) -> None:
    _ = make(small).select
    append(small, 1, LARGER)
    assert fates(make(small)) == KEPT
    _ = make(small, {"filter.image.rules": {"resolution": "min_side_px >= 100"}}).select
    assert fates(make(small)) == KEPT
    append(small, 2, {"unrelated": 77})
    assert fates(make(small)) == KEPT


def test_rewrite_of_one_slice_forgets_nothing_of_the_others(small: Path) -> None:
    append(small, 1, {"x": 5, "y": 6})
    _ = make(small).select
    append(small, 2, {"c": 7})
    chain = make(small)
    assert fates(chain) == {}
    report = take_down(chain.recipe, [Identifier(kind="key", value="x")], TakedownOptions(rewrite=True))
    assert report["samples"] == {"scenes": 1}
    append(small, 3, LARGER | {"bigger-c": (7, 128)})
    assert fates(make(small)) == KEPT | {"bigger-c": ("near_duplicate", "scenes/c")}
    assert faults_in(open_store(str(small / "root"))) == []


def test_renamed_source_and_a_mirror_are_decided_again(small: Path) -> None:
    append(small, 1, {"a2": 3})
    assert [row[2] for row in verdicts(small, "one")] == [None, None, "one/a"]
    assert [row[2] for row in verdicts(small, "two")] == [None, None, "two/a"]
    first = verdicts(small, "one", "two")
    assert [row[2] for row in first] == ["two/a", "two/b", "two/a", None, None, "two/a"]
    append(small, 2, {"c": 5})
    assert [row for row in verdicts(small, "one", "two") if row[1] != "c"] == first


def verdicts(folder: Path, *sources: str) -> list[tuple[str, str, str | None]]:
    """Return (source, key, what it is a copy of), the same shards being the data of all sources."""
    wanted = {"filter.image.duplicates.max_distance": 4, "execution.unit_rows": 100}
    value = tiny.recipe(folder / "data", str(folder / "root"), wanted, sources=["scenes"])
    value["sources"] = dict.fromkeys(sources, value["sources"]["scenes"])
    chain = Chain(recipe=check_recipe(value, "tiny"), options=ChainOptions(quiet=True))
    found = chain.duplicates["image"]
    rows = pl.concat([found.folder.read_rows(commit) for commit in found.commits])
    assert set(rows["source"]) == set(sources)
    return rows.select("source", "key", "duplicate_of").rows()


def test_keys_that_every_shard_repeats_are_told_apart_by_their_shard(small: Path) -> None:
    write_shard(small / "data/scenes/00.tar", {"0000": 3, "0001": 4})
    append(small, 1, {"0000": 5, "0001": 3, "once": 6})
    append(small, 2, {"0000": 5, "0002": 6})
    rows = verdicts(small, "scenes")
    assert [(key, of) for _, key, of in rows if of] == [
        ("0001", "scenes/00.tar/0000"),
        ("once", "scenes/0002"),
        ("0000", "scenes/01.tar/0000"),
    ]


def test_sample_of_a_new_slice_is_known_by_shard_and_key_or_by_a_key_that_is_but_once() -> None:
    kept = pl.DataFrame({"source": ["s"] * 3, "shard": ["1", "2", "2"], "key": ["0", "0", "once"]})
    rows = [(0, "s", "1", "0", True), (1, "s", "3", "0", True), (2, "s", "9", "once", False), (3, "t", "1", "0", False)]
    candidates = pl.DataFrame(rows, schema=["sample", "source", "shard", "key", "repeated"], orient="row")
    assert sorted(moved(candidates, kept)) == [0, 2]


def test_meaning_drops_nothing_that_was_kept_before() -> None:
    stars = Stars(4, kept_before=2)
    stars.drop(SEMANTIC, stars.left, np.array([0, 0, 0, 3]))
    assert stars.left.tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    "values",
    [
        pl.Series("v", [[1.0, 2.0], [3.0, 4.0, 5.0, 6.0]], dtype=pl.List(pl.Float32)),
        pl.Series("v", [b"\0\0\0\0", b"\0\0" * 6], dtype=pl.Binary),
        pl.Series("v", [b"\0\0\0", b"\0\0\0"], dtype=pl.Binary),
    ],
)
def test_vectors_of_different_length_are_refused_by_column_and_slice(values: pl.Series) -> None:
    with pytest.raises(RunError, match=r"scenes, 00\.tar: .* of v differ in length"):
        matrix(values, "scenes, 00.tar")


@pytest.mark.parametrize("kind", ["semantic", "text"])
def test_kind_of_copies_over_a_column_of_another_kind_is_refused_before_anything_runs(small: Path, kind: str) -> None:
    with pytest.raises(RecipeError, match=rf"duplicates\.{kind}: width_px holds Int32, not"):
        make(small, {"filter.image.duplicates": {kind: {"column": "width_px"}}})
    assert not (small / "root").exists()


def test_scorer_that_nothing_reads_takes_no_decision_again(small: Path) -> None:
    _ = make(small).duplicates
    before = records(small)
    more = {"resolution": {}, "colourfulness": {}, "perceptual_hash": {"when": "min_side_px >= 48"}, "sharpness": {}}
    _ = make(small, {"filter.image.scorers": more}).duplicates
    assert records(small) - before == {"score": 1}


def test_three_shards_appended_to_twenty_and_one_inserted_run_themselves_alone(tmp_path: Path) -> None:
    (tmp_path / "data/scenes").mkdir(parents=True)
    for shard in range(20):
        append(tmp_path, shard, {f"{shard}-0": 100 + shard})
    few = {
        "filter.image": {"scorers": {"resolution": {}}, "rules": {}, "duplicates": {"exact": True}},
        "tokenize.image.max_area": 1024,
    }
    _ = make(tmp_path, few).tokenize
    before = records(tmp_path)
    for shard in (20, 21, 22):
        append(tmp_path, shard, {f"{shard}-0": 200 + shard})
    write_shard(tmp_path / "data/scenes/09b.tar", {"9b-0": 400, "9b-1": 100})  # a copy of what stands in another shard
    chain = make(tmp_path, few)
    _ = chain.tokenize
    added = records(tmp_path) - before
    own = dict.fromkeys(("ingest", "score", "duplicates", "select", "caption", "choose", "tokenize"), 4)
    assert added == own | {"compare": 1}
    assert fates(chain)["9b-1"] == ("exact_duplicate", "scenes/0-0")


def test_threshold_of_one_source_touches_no_file_of_another(small: Path) -> None:
    (small / "data/photos").mkdir()
    (small / "data/photos/p.png").write_bytes(tiny.picture(8))
    (small / "data/photos/small.png").write_bytes(tiny.picture(9, 48))
    stages = ("ingest", "score", "select", "caption", "choose", "tokenize")

    def run(changes: Mapping[str, Any]) -> Chain:
        few = {"tokenize.image.max_area": 1024, "filter.image.duplicates.max_distance": 4}
        value = tiny.recipe(small / "data", str(small / "root"), few | dict(changes), sources=["scenes", "photos"])
        chain = Chain(recipe=check_recipe(value, "tiny"), options=ChainOptions(quiet=True))
        _ = chain.tokenize
        return chain

    def files() -> dict[str, int]:
        paths = [path for stage in stages for path in (small / "root" / stage / "scenes").rglob("*")]
        return {str(p): p.stat().st_mtime_ns for p in paths if p.is_file() and "logs" not in p.parts}

    first, before = run({}), files()
    own = {"photos": {"rules": {"resolution": "min_side_px >= 60"}}}
    second = run({"filter.image.sources": own})
    assert files() == before
    assert second.select["photos"].counts.kept == first.select["photos"].counts.kept - 1
    assert second.tokenize["scenes"].digest == first.tokenize["scenes"].digest
