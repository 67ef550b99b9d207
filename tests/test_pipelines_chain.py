"""The chain as a whole: what is recomputed when something changes, and that it does not matter where or how it ran."""

from __future__ import annotations

import io
import json
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests import tiny

from tokenmill.errors import RecipeError, RunError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.records import Commit
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.decoding import DecodeLimits
from tokenmill.pipelines.fates import fates_of
from tokenmill.pipelines.jobs import Job, Target, Unit, UnitOutput, publish
from tokenmill.recipe import check_recipe
from tokenmill.tokenize.vision import load_vision_tokenizer
from tokenmill.tokenize.vocabulary import build_vocabulary

Make = Callable[..., Chain]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw data and a root in which every data stage has run."""
    folder = tmp_path_factory.mktemp("chain")
    tiny.write_data(folder / "data")
    run_all(make(folder))
    return folder


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    shutil.copytree(prepared, tmp_path / "copy")
    return tmp_path / "copy"


def make(folder: Path, changes: Mapping[str, Any] | None = None, *, root: str = "root", **options: Any) -> Chain:
    value = tiny.recipe(folder / "data", str(folder / root), changes)
    return Chain(recipe=check_recipe(value, "tiny"), options=ChainOptions(quiet=True, **options))


def run_all(chain: Chain) -> dict[str, str]:
    """Run every stage and return the digest of every snapshot by its folder."""
    digests = {s.folder.path: s.digest for stage in tiny.DATA_STAGES[:-1] for s in chain.snapshots(stage)}
    return digests | {"plan": chain.plan.description["snapshot"]}


def records(folder: Path, root: str = "root") -> dict[str, int]:
    """Return every record and when it was written."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in (folder / root).rglob("commits/*.json")}


def stage_of(record: str) -> str:
    return record.split("/")[1]


def test_chain_run_twice_writes_nothing(copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (copy / "root").rglob("*") if path.is_file()}
    run_all(make(copy))
    after = {path: path.stat().st_mtime_ns for path in (copy / "root").rglob("*") if path.is_file()}
    assert after == before


def test_chain_in_another_root_gives_the_same_digests(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "data", tmp_path / "data")
    assert run_all(make(tmp_path)) == run_all(make(prepared))


def test_every_record_counts_the_rows_of_its_table(prepared: Path) -> None:
    chain = make(prepared)
    commits = 0
    for stage in ("ingest", "score", "select", "caption", "tokenize"):
        for snapshot in chain.snapshots(stage):
            for commit in snapshot.commits:
                rows = snapshot.folder.read_rows(commit)
                counts = commit.counts
                assert rows.height == counts.rows_in == counts.kept + _lost(commit)
                assert rows["fail_reason"].drop_nulls().len() == sum(counts.failed.values())
                commits += 1
    assert commits > 20


def test_plan_says_which_tokenizers_made_its_ids(prepared: Path) -> None:
    description = make(prepared).plan.description
    assert description["vocabulary_fingerprint"] == build_vocabulary(description["vocabulary"]).fingerprint
    assert description["vision_fingerprint"] == load_vision_tokenizer("scenes").fingerprint


def _lost(commit: Commit) -> int:
    return sum(commit.counts.dropped.values()) + sum(commit.counts.failed.values())


def test_token_archives_read_by_stock_webdataset_agree_with_their_index(prepared: Path) -> None:
    import webdataset

    chain = make(prepared)
    samples = 0
    for snapshot in chain.tokenize.values():
        for commit in snapshot.commits:
            path = snapshot.folder.store.local_path(snapshot.folder.at(commit.data.name))
            assert path is not None
            data = path.read_bytes()
            rows = snapshot.folder.read_rows(commit).filter(pl.col("fail_reason").is_null())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves the tar open
                found = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False).decode())
            assert [sample["json"]["key"] for sample in found] == rows["key"].to_list()
            for sample, row in zip(found, rows.iter_rows(named=True), strict=True):
                for member in ("codes", "text"):
                    cut = data[row[f"{member}_offset"] :][: row[f"{member}_length"]]
                    assert np.array_equal(np.load(io.BytesIO(cut)), sample[f"{member}.npy"])
                cut = data[row["json_offset"] :][: row["json_length"]]
                assert json.loads(cut) == sample["json"]
                assert sample["json"]["segments"] == json.loads(row["segments"])
                assert (len(sample["text.npy"]), len(sample["codes.npy"])) == (row["num_text"], row["num_codes"])
                samples += 1
    assert samples > 15


def test_nothing_is_lost_between_stages(prepared: Path) -> None:
    chain = make(prepared)
    for source in ("scenes", "photos", "text"):
        assert chain.select[source].counts.rows_in == chain.ingest[source].counts.kept
    assert chain.select["clips"].counts.rows_in == chain.split["clips"].counts.out
    for source in ("scenes", "photos", "clips"):
        assert chain.caption[source, "caption"].counts.rows_in == chain.select[source].counts.kept
        assert chain.choose[source].counts.rows_in == chain.select[source].counts.kept
        assert chain.tokenize[source].counts.rows_in == chain.choose[source].counts.kept


def test_broken_samples_become_rows_with_their_reason(prepared: Path) -> None:
    fates = fates_of(make(prepared))
    assert fates["scenes", "00000004"].startswith("failed at score: truncated")
    assert fates["scenes", "00001001"] == "dropped: exact_duplicate"
    assert fates["photos", "broken.jpg"].startswith("failed at score: not_an_image")
    assert fates["clips", "none.mp4"].startswith("failed at split: not_a_video")
    assert any(fate.startswith("failed at ingest: bad_encoding") for fate in fates.values())
    assert fates["scenes", "00000000"] == "kept"


def test_new_shard_costs_only_its_own_units(copy: Path) -> None:
    before = records(copy)
    shutil.copy(copy / "data/scenes/00000.tar", copy / "data/scenes/00000-kept.tar")
    new = tiny.picture(500)
    with tiny.ArchiveWriter(copy / "data/scenes/00002.tar") as writer:
        writer.add("00002000", {"png": new, "txt": b"one more"})
    (copy / "data/scenes/00000-kept.tar").unlink()
    run_all(make(copy))
    after = records(copy)
    assert all(after[record] == time for record, time in before.items())
    added = [record for record in after if record not in before]
    for stage in ("ingest", "select", "caption", "choose", "tokenize"):
        assert len([record for record in added if stage_of(record) == stage]) == 1, stage


def test_new_threshold_that_keeps_the_same_samples_tokenizes_nothing(copy: Path) -> None:
    before = records(copy)
    run_all(make(copy, {"filter.image.rules": {"resolution": "min_side_px >= 47"}}))
    added = {stage_of(record) for record in set(records(copy)) - set(before)}
    assert "select" in added
    assert not added & {"ingest", "split", "score", "caption", "tokenize", "plans"}


def test_new_threshold_that_drops_samples_tokenizes_only_their_units(copy: Path) -> None:
    before = records(copy)
    run_all(make(copy, {"filter.image.rules": {"resolution": "min_side_px >= 48 AND width_px < 70"}}))
    added = [record for record in set(records(copy)) - set(before) if stage_of(record) == "tokenize"]
    assert added
    assert all("/photos/" in record for record in added)


def test_scorer_added_later_runs_alone(copy: Path) -> None:
    before = records(copy)
    scorers = {**tiny.RECIPE["filter"]["image"]["scorers"], "sharpness": {}}
    chain = make(copy, {"filter.image.scorers": scorers})
    run_all(chain)
    added = [record for record in set(records(copy)) - set(before) if stage_of(record) == "score"]
    folder = next(s.folder.path for s in chain.score["scenes"] if s.folder.config.settings["scorer"] == "sharpness")
    photos = next(s.folder.path for s in chain.score["photos"] if s.folder.config.settings["scorer"] == "sharpness")
    assert added
    assert all(record.startswith((f"root/{folder}", f"root/{photos}")) for record in added)


def test_gated_scorer_leaves_null_behind_its_gate(copy: Path) -> None:
    scorers = {"resolution": {}, "perceptual_hash": {"when": "min_side_px >= 70"}}
    chain = make(copy, {"filter.image.scorers": scorers, "filter.image.carry": []})
    found = {}
    for source in ("scenes", "photos"):
        snapshot = next(s for s in chain.score[source] if s.folder.config.settings["scorer"] == "perceptual_hash")
        frames = [snapshot.folder.read_rows(commit) for commit in snapshot.commits]
        found[source] = pl.concat(frames).filter(pl.col("fail_reason").is_null())["phash"]
    assert found["scenes"].null_count() == len(found["scenes"])
    assert found["photos"].null_count() == 0


def test_one_changed_source_leaves_the_others_untouched(copy: Path) -> None:
    before = records(copy)
    line = '{"id": "late", "text": "A text that was added later than all the others were."}\n'
    with next((copy / "data/text").glob("*.jsonl")).open("a") as file:
        file.write(line)
    run_all(make(copy))
    added = {record.split("/")[2] for record in set(records(copy)) - set(before)}
    assert added <= {"text", "pretrain"}


def test_duplicates_keep_what_an_earlier_snapshot_kept(copy: Path) -> None:
    fates = fates_of(make(copy))
    assert fates["scenes", "00000000"] == "kept"
    # The same picture under a key that sorts first, and larger in the order of preference by nothing else.
    with tiny.ArchiveWriter(copy / "data/scenes/000000.tar") as writer:
        writer.add("0000", {"png": tiny.picture(0), "txt": b"a newcomer"})
    chain = make(copy)
    run_all(chain)
    fates = fates_of(chain)
    assert fates["scenes", "00000000"] == "kept"
    assert fates["scenes", "0000"] == "dropped: exact_duplicate"


def test_retry_that_changes_nothing_writes_no_attempt(copy: Path) -> None:
    before = run_all(make(copy))
    assert run_all(make(copy, retry_failed=True)) == before
    assert not list((copy / "root").rglob("commits/*.1.json"))


def test_retry_that_helps_is_the_next_attempt_and_names_its_predecessor(copy: Path) -> None:
    chain = make(copy)
    folder, commit = next((s.folder, c) for s in chain.score["scenes"] for c in s.commits if c.counts.failed)
    job = Job(unit=Unit(inputs=commit.inputs), targets=())
    target = Target(folder=folder, attempt=1, predecessor=sha256_hex(commit.to_bytes()))
    counts = replace(commit.counts, kept=commit.counts.rows_in, out=commit.counts.rows_in, failed={})
    healed = publish(job, target, UnitOutput(rows=folder.read_rows(commit), counts=counts))
    assert (healed.attempt, healed.predecessor) == (1, target.predecessor)
    assert folder.record_names()[commit.unit] == 1
    assert make(copy).score["scenes"][0].folder.path  # the chain reads the higher attempt from now on


def test_changed_picture_of_the_same_size_is_noticed_when_read(copy: Path) -> None:
    path = copy / "data/scenes/00000.tar"
    chain = make(copy, {"filter.image.scorers": {**tiny.RECIPE["filter"]["image"]["scorers"], "sharpness": {}}})
    row = chain.ingest["scenes"].folder.read_rows(chain.ingest["scenes"].commits[0]).row(0, named=True)
    data = bytearray(path.read_bytes())
    data[row["offset"] + row["length"] // 2] ^= 1
    path.write_bytes(data)
    snapshot = next(s for s in chain.score["scenes"] if s.folder.config.settings["scorer"] == "sharpness")
    assert sum((Counter(c.counts.failed) for c in snapshot.commits), Counter())["changed_since_ingest"] == 1


def test_lone_surrogate_in_a_line_costs_that_line_alone(copy: Path) -> None:
    lines = (
        '{"id": "half", "text": "broken \\ud83d"}\n{"id": "odd \\ud83d", "text": "A good text of more than twenty."}\n'
    )
    (copy / "data/text/zz.jsonl").write_text(lines)
    chain = make(copy)
    run_all(chain)
    fates = fates_of(chain)
    assert fates["text", "odd \\ud83d"] == "kept"
    assert fates["text", "zz.jsonl#0"].startswith("failed at ingest: bad_encoding")


def test_gate_of_a_gate_is_part_of_a_scorers_identity(prepared: Path) -> None:
    def digest(gate: str) -> str:
        scorers = {"resolution": {}, "sharpness": {"when": f"min_side_px >= {gate}"},
                   "perceptual_hash": {"when": "sharpness >= 1"}}  # fmt: skip
        scoring = make(prepared, {"filter.image.scorers": scorers}).passes["image"]
        spec = next(spec for spec in scoring.specs if spec.name == "perceptual_hash")
        return scoring.config(spec, DecodeLimits()).digest

    assert digest("10") != digest("1000")


def test_stage_that_may_not_work_names_what_is_missing(copy: Path) -> None:
    shutil.rmtree(copy / "root/caption")
    with pytest.raises(RunError, match=r"caption: .* units are missing"):
        _ = make(copy, work=frozenset({"tokenize"})).tokenize


def test_limit_takes_the_first_units_only(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "data", tmp_path / "data")
    chain = make(tmp_path, limit=1)
    assert len(chain.ingest["scenes"].commits) == 1


def test_unknown_column_in_a_rule_is_refused_before_anything_runs(prepared: Path) -> None:
    chain = make(prepared, {"filter.image.rules": {"size": "min_side >= 3"}})
    with pytest.raises(RecipeError, match=r"filter\.image\.rules\.size.*min_side_px"):
        _ = chain.rules


@pytest.mark.ray
@pytest.mark.slow
def test_chain_on_ray_gives_the_digests_of_inline(prepared: Path, tmp_path: Path) -> None:
    from tokenmill.pipelines.ray_cluster import stop_ray

    shutil.copytree(prepared / "data", tmp_path / "data")
    try:
        found = run_all(make(tmp_path, {"execution.executor": "ray", "execution.workers": 2}))
    finally:
        stop_ray()
    assert found == run_all(make(prepared))
