"""Selection over annotations: rescues, rules of one source, scores no rule may look at, and what is read for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests import stages, tiny

from tokenmill.errors import ManifestError, RecipeError
from tokenmill.manifests.packed_table import open_rows
from tokenmill.manifests.records import Commit, Counts
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.pipelines import chain as chain_module
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.draining import Drain
from tokenmill.pipelines.execution import cpu_seconds
from tokenmill.pipelines.execution_threads import run_in_threads
from tokenmill.pipelines.jobs import Job, JobResult, Target, Unit, UnitOutput, publish
from tokenmill.recipe import check_recipe

RULES = {
    "wide": {"keep": "width_px >= 70", "rescue": "colourfulness >= 40"},
    "bright": {"keep": "colourfulness >= 1000", "rescue": "min_side_px < 70"},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two sources, scored and selected."""
    folder = tmp_path_factory.mktemp("selection")
    tiny.write_pictures(folder / "data")
    _ = make(folder).select
    return folder


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    shutil.copytree(prepared, tmp_path / "copy")
    return tmp_path / "copy"


def make(folder: Path, changes: Mapping[str, Any] | None = None, **options: Any) -> Chain:
    value = tiny.recipe(folder / "data", str(folder / "root"), changes, sources=["scenes", "photos"])
    return Chain(recipe=check_recipe(value, "tiny"), options=ChainOptions(quiet=True, **options))


def verdicts(chain: Chain, source: str) -> pl.DataFrame:
    snapshot = chain.select[source]
    return pl.concat([snapshot.folder.read_rows(commit) for commit in snapshot.commits])


def files(folder: Path) -> set[str]:
    """Return every file below the root but the logs, which a run always adds to."""
    found = {str(path.relative_to(folder / "root")) for path in (folder / "root").rglob("*") if path.is_file()}
    return {path for path in found if "/logs/" not in path}


def test_rescued_samples_are_kept_named_and_counted(copy: Path) -> None:
    chain = make(
        copy, {"filter.image.rules": {"wide": RULES["wide"]}, "filter.image.carry": ["width_px", "colourfulness"]}
    )
    rows = verdicts(chain, "scenes").filter(pl.col("fail_reason").is_null())
    colourful = rows["colourfulness"] >= 40
    assert 0 < colourful.sum() < rows.height
    assert rows["rescued_by"].is_not_null().to_list() == colourful.to_list()
    assert set(rows.filter(~colourful)["drop_reason"]) == {"wide"}
    assert not rows.filter(colourful)["drop_reason"].is_in(["wide"]).any()
    assert chain.select["scenes"].totals["rescued.wide"] == colourful.sum()
    assert verdicts(chain, "photos")["rescued_by"].null_count() == 4


def test_captions_of_a_selection_with_rescues_read_the_kept_samples(copy: Path) -> None:
    chain = make(copy, {"filter.image.rules": {"wide": RULES["wide"]}})
    kept = verdicts(chain, "scenes")["keep"].sum()
    assert chain.caption["scenes", "caption"].counts.rows_in == kept


def test_rule_of_one_source_touches_no_other_source(copy: Path) -> None:
    before = files(copy)
    changes = {"filter.image.sources": {"photos": {"rules": {"resolution": "min_side_px >= 1000"}}}}
    chain = make(copy, changes)
    assert chain.select["photos"].counts.dropped == {"resolution": 3}
    assert chain.select["scenes"].counts == make(copy).select["scenes"].counts
    _ = chain.caption
    added = files(copy) - before
    assert {path.split("/")[1] for path in added if path.startswith("select/")} == {"photos"}
    others = {path for path in added if "/scenes/" in path and not path.startswith("caption/")}  # not captioned before
    assert not others
    assert before <= files(copy)


def test_rule_of_one_source_without_duplicates_writes_its_selection_alone(copy: Path) -> None:
    _ = make(copy, {"filter.image.duplicates": None}).select
    before = files(copy)
    rules = {"photos": {"rules": {"resolution": None, "shape": "aspect < 100"}}}
    chain = make(copy, {"filter.image.duplicates": None, "filter.image.sources": rules})
    assert list(chain.rules_of["photos"].texts) == ["shape"]
    _ = chain.select
    assert {"/".join(path.split("/")[:2]) for path in files(copy) - before} == {"select/photos"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"filter.image.sources": {"foto": {}}}, r"filter\.image\.sources\.foto: no image source .*photos, scenes"),
        ({"filter.video.sources": {"photos": {}}}, r"filter\.video\.sources\.photos: no video source"),
        (
            {"filter.image.sources": {"photos": {"rules": {"a": "min_side > 3"}}}},
            r"filter\.image\.sources\.photos\.rules\.a: unknown column 'min_side'",
        ),
        (
            {"filter.image.rules": {"a": {"keep": "width_px > 3", "rescue": "width > 3"}}},
            r"filter\.image\.rules\.a\.rescue: unknown column 'width'",
        ),
        (
            {"filter.image.scorers.resolution": {"score_only": True}},
            r"filter\.image\.rules\.resolution: no rule may look at 'min_side_px'.*scorers\.resolution\.score_only",
        ),
    ],
)
def test_rules_that_cannot_hold_are_refused_by_their_key_path(
    prepared: Path, changes: Mapping[str, Any], says: str
) -> None:
    with pytest.raises(RecipeError, match=says):
        _ = make(prepared, changes).rules_of


@pytest.mark.parametrize("rule", [5, ["min_side_px > 3"], {"rescue": "width_px > 3"}, {"keep": "a", "else": "b"}])
def test_rule_of_a_wrong_form_is_refused_with_its_key_path(tmp_path: Path, rule: Any) -> None:
    with pytest.raises(RecipeError, match=r"tiny: filter\.image\.rules\.a"):
        make(tmp_path, {"filter.image.rules": {"a": rule}})


def test_score_only_scorer_added_later_touches_no_selection_and_can_be_carried(copy: Path) -> None:
    before = files(copy)
    scorers = {**tiny.RECIPE["filter"]["image"]["scorers"], "sharpness": {"score_only": True}}
    chain = make(copy, {"filter.image.scorers": scorers})
    _ = chain.select
    assert {path.split("/")[0] for path in files(copy) - before} <= {"score", "compare", "duplicates"}
    carried = make(copy, {"filter.image.scorers": scorers, "filter.image.carry": ["sharpness"]})
    assert verdicts(carried, "scenes").filter("keep")["sharpness"].null_count() == 0


def test_failure_of_a_score_only_scorer_fails_no_sample(prepared: Path) -> None:
    part = make(prepared).scored["scenes"][0]
    folder, commit = part.scores[0]
    broken = _published(prepared, folder, commit, lambda rows: rows.with_columns(fail_reason=pl.lit("no_model")))
    loud = replace(part, scores=((broken[0], broken[1]), *part.scores[1:]))
    assert loud.verdict_table(())["fail_reason"].null_count() == 0
    silent = replace(loud, silent=frozenset([folder.config.settings["scorer"]]))
    assert silent.verdict_table(())["fail_reason"].to_list() == part.verdict_table(())["fail_reason"].to_list()


def test_verdict_table_holds_what_joining_all_tables_gives(prepared: Path) -> None:
    for source in ("scenes", "photos"):
        for part in make(prepared).scored[source]:
            whole = part.table()
            columns = ["width_px", "phash", "colourfulness"]
            assert part.verdict_table(columns).equals(whole.select("key", "fail_reason", *columns).select(
                part.verdict_table(columns).columns), null_equal=True)  # fmt: skip


@pytest.mark.parametrize("which", [0, 1])
def test_tables_in_another_order_or_with_missing_rows_are_joined_by_key(prepared: Path, which: int) -> None:
    part = make(prepared).scored["scenes"][0]
    folder, commit = part.scores[which]
    wanted = part.verdict_table(["width_px", "colourfulness"])
    other = _published(prepared, folder, commit, lambda rows: rows.reverse())
    turned = tuple(other if place == which else score for place, score in enumerate(part.scores))
    found = replace(part, scores=turned).verdict_table(["width_px", "colourfulness"])
    assert found.select(wanted.columns).sort("key").equals(wanted.sort("key"))
    short = _published(prepared, folder, commit, lambda rows: rows.head(2))
    cut = tuple(short if place == which else score for place, score in enumerate(part.scores))
    found = replace(part, scores=cut).verdict_table(["width_px", "colourfulness"]).select(wanted.columns)
    assert found["key"].to_list() == wanted["key"].to_list()
    assert found.head(2).equals(wanted.head(2))


def _published(
    root: Path, folder: StageDir, commit: Commit, change: Callable[[pl.DataFrame], pl.DataFrame]
) -> tuple[StageDir, Commit]:
    """Publish a changed copy of a unit's table in a folder of its own."""
    rows = change(folder.read_rows(commit))
    config = StageConfig(
        stage="score", version=1, schema=1, settings={**folder.config.settings, "n": str(rows.hash_rows().sum())}
    )
    other = StageDir(store=folder.store, source="elsewhere", config=config)
    failed = dict(rows["fail_reason"].drop_nulls().value_counts().iter_rows())
    kept = rows.height - sum(failed.values())
    counts = Counts(rows_in=rows.height, kept=kept, out=kept, failed=failed)
    job = Job(unit=Unit(inputs=commit.inputs), targets=(Target(folder=other),))
    return other, publish(job, job.targets[0], UnitOutput(rows=rows, counts=counts))


def test_scores_that_no_rule_reads_are_not_opened(copy: Path) -> None:
    part = make(copy).scored["scenes"][0]
    for folder, commit in part.scores:
        if folder.config.settings["scorer"] == "perceptual_hash":
            assert not commit.counts.failed
            (copy / "root" / folder.at(commit.rows.name)).unlink()
    assert part.verdict_table(["width_px"]).height == part.piece.num_rows


def test_large_table_is_read_by_ranges_and_damage_in_them_is_noticed(copy: Path) -> None:
    part = make(copy).scored["photos"][0]
    folder, commit = part.scores[0]
    whole, ranged = open_rows(folder, commit), open_rows(folder, commit, whole_bytes=0)
    assert ranged.columns == whole.columns
    assert ranged.packed("key") == whole.packed("key")
    assert ranged.read(["key", "colourfulness"]).equals(whole.read(["key", "colourfulness"]))
    with pytest.raises(ManifestError, match="without column 'nothing'"):
        ranged.read(["nothing"])
    path = copy / "root" / folder.at(commit.rows.name)
    data = bytearray(path.read_bytes())
    data[data.index(ranged.packed("colourfulness")[0]) + 40] ^= 8
    path.write_bytes(data)
    with pytest.raises(ManifestError, match="not a readable table"):
        open_rows(folder, commit, whole_bytes=0).read(["colourfulness"])
    with pytest.raises(ManifestError, match="sha256 differs"):
        open_rows(folder, commit)


def test_selection_by_one_thread_and_by_four_is_the_same(prepared: Path, tmp_path: Path, monkeypatch: Any) -> None:
    found = []
    for threads in (1, 4):
        folder = tmp_path / str(threads)
        shutil.copytree(prepared, folder)
        shutil.rmtree(folder / "root/select")
        monkeypatch.setattr(chain_module, "query_threads", lambda store, threads=threads: threads)
        found.append({name: snapshot.digest for name, snapshot in make(folder).select.items()})
    assert found[0] == found[1]


class Picky:
    """Refuses every third unit and commits the others."""

    closed = 0

    def __call__(self, job: Job) -> JobResult:
        if (job.unit.inputs[0].start or 0) % 3 == 0:
            raise ManifestError("a third one")
        commit = stages.commit_of(job.targets[0].folder, job.unit)
        return JobResult(commits=(job.targets[0].folder.publish_commit(commit),))

    def close(self) -> None:
        Picky.closed += 1


def jobs_of(folder: Path, number: int) -> list[Job]:
    target = Target(folder=stages.folder_at(folder))
    return [Job(unit=unit, targets=(target,)) for unit in stages.units_of(number)]


def test_threads_report_every_job_once_and_close_their_workers(tmp_path: Path) -> None:
    before = cpu_seconds()
    found = list(run_in_threads(Picky, jobs_of(tmp_path, 20), threads=3, drain=Drain(1.0)))
    assert sorted(one.index for one in found) == list(range(20))
    assert sorted(one.index for one in found if one.result is None) == list(range(0, 20, 3))
    assert {one.error for one in found if one.result is None} == {"a third one"}
    assert sum(one.cpu_s for one in found) <= cpu_seconds() - before  # what threads use together is charged once
    assert Picky.closed == 3


def test_threads_asked_to_end_begin_nothing_more(tmp_path: Path) -> None:
    drain = Drain(1.0)
    running = run_in_threads(Picky, jobs_of(tmp_path, 50), threads=2, drain=drain)
    next(running)
    drain.ask()
    assert len(list(running)) < 10
