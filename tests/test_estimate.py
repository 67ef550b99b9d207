"""What a whole source will take, told from a few of its units: against the run of the whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests import tiny
from tests.films import segments

from tokenmill.cli import main
from tokenmill.manifests.archive import ArchiveWriter
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.estimate import shared_out, spread
from tokenmill.pipelines.estimate_figures import Cluster, Pool, SourceSize, estimate_stages, hours_of
from tokenmill.pipelines.progress import efficiency
from tokenmill.recipe import load_recipe

_SHARDS, _ROWS = 8, 6
_CHANGES = {"execution.unit_rows": 3, "filter.image.duplicates": None}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight shards of six scenes, of which the rules keep two in three."""
    folder = tmp_path_factory.mktemp("estimate")
    (folder / "data" / "scenes").mkdir(parents=True)
    for shard in range(_SHARDS):
        with ArchiveWriter(folder / "data" / "scenes" / f"{shard:05d}.tar") as writer:
            for number in range(_ROWS):
                data = tiny.picture(shard * _ROWS + number, size=32 if number % 3 == 0 else 64)
                writer.add(f"{shard:05d}{number:03d}", {"png": data, "txt": b"a scene"})
    return tiny.write_recipe(
        folder / "recipe.yaml", folder / "data", str(folder / "root"), _CHANGES, sources=["scenes"]
    )


def test_estimate_of_two_units_is_near_the_run_of_all_and_leaves_nothing(recipe, capsys):
    arguments = ["--units", "2", "--workers", "2", "--nodes", "1", "--price-per-hour", "3.6", "--json"]
    assert main(["estimate", str(recipe), *arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    assert open_store(load_recipe(recipe).root).files() == []
    size = told["sources"]["scenes"]
    assert (size["units"], size["measured_units"]) == (_SHARDS, 2)
    assert size["share"] == pytest.approx(2 / _SHARDS, rel=0.1)

    chain = Chain(recipe=load_recipe(recipe), options=ChainOptions(quiet=True))
    for row in told["stages"]:
        commits = [commit for snapshot in chain.snapshots(row["stage"])[:1] for commit in snapshot.commits]
        written = sum(file.bytes for s in chain.snapshots(row["stage"]) for c in s.commits for file in c.files)
        assert row["rows"] == pytest.approx(sum(c.counts.rows_in for c in commits), rel=0.15), row["stage"]
        assert row["rows_kept"] == pytest.approx(sum(c.counts.kept for c in commits), rel=0.15), row["stage"]
        assert row["units"] == pytest.approx(len(commits), rel=0.15), row["stage"]
        assert row["bytes_written"] == pytest.approx(written, rel=0.25), row["stage"]
        assert row["hours"] > 0 and row["rows_per_s_worker"] > 0
        assert row["cost"] == pytest.approx(3.6 * row["hours"], abs=1e-3)
    assert [row["stage"] for row in told["stages"]] == ["ingest", "score", "select", "caption", "choose", "tokenize"]
    assert next(row for row in told["stages"] if row["stage"] == "tokenize")["rows"] == pytest.approx(32, abs=4)


def test_estimate_for_people_names_bounds_pools_and_limits(recipe, capsys):
    """Of 32 decoders the 16 units keep 16 at work; the scorers have no model, so decoders are what it waits for."""
    decoders = "execution.pools.score.decode={workers: 32}"
    assert main(["estimate", str(recipe), decoders, "execution.pools.score.workers=4", "--units", "1"]) == 0
    text = capsys.readouterr().out
    (score,) = [line for line in text.splitlines() if line.startswith("score ")]
    assert "16+4" in score
    assert "scenes: 8 units" in text and "measured 1 units" in text
    assert "tokenize" in text and "extrapolated by raw bytes" in text


def test_estimate_that_fails_leaves_no_scratch_folder_either(recipe, capsys):
    assert main(["estimate", str(recipe), "filter.image.rules.none=min_side_px > nothing"]) == 2
    assert main(["estimate", str(recipe), "--units", "0"]) == 2
    assert "--units 0: has to be at least 1" in capsys.readouterr().err
    root = Path(load_recipe(recipe).root)
    assert not list(root.glob("scratch-*"))


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [5]), (2, [2, 7]), (3, [1, 5, 8]), (10, list(range(10))), (99, list(range(10)))]
)
def test_measured_units_are_spread_over_the_source(count, expected):
    assert spread(range(10), count) == expected


def test_hours_are_whole_rounds_of_the_workers():
    assert hours_of(worker_s=36_000, units=100, workers=10) == pytest.approx(1.0)
    assert hours_of(worker_s=36_000, units=11, workers=10) == pytest.approx(2 * 36_000 / 11 / 3600)
    assert hours_of(worker_s=36_000, units=100, workers=10, startup_s=360) == pytest.approx(1.1)


def test_figures_take_start_up_out_and_tell_bound_spread_and_money():
    """Two units of 100 rows, the first with 20 s of loading models; a fiftieth of the bytes was measured."""
    common = {"kind": "unit", "stage": "score", "source": "a", "worker": "w", "requests": 3}
    common |= {"rows_in": 100, "rows_kept": 50}
    first, second = {"decode": 8.0, "model": 2.0}, {"decode": 15.0, "model": 5.0}
    rows = [
        {**common, "started": 1.0, "wall_s": 30.0, "phases_s": first, "bytes_out": 10},
        {**common, "started": 31.0, "wall_s": 20.0, "phases_s": second, "bytes_out": 30},
    ]
    sizes = {"a": SourceSize(units=100, bytes=5000, measured_units=2, measured_bytes=100)}
    cluster = Cluster(workers=10, nodes=2, price_per_hour=1.5, gpu_price_per_hour=2.0)
    (stage,) = estimate_stages(rows, sizes, {"a": "image"}, {"score": Pool(workers=10, gpus=0.5)}, cluster)
    assert (stage.units, stage.rows, stage.rows_kept, stage.bytes_written) == (100, 10_000, 5_000, 2_000)
    assert (stage.startup_s, stage.bound_by) == (20.0, "decode 77 %")
    assert stage.rows_per_s_worker == pytest.approx(200 / 30, abs=0.01)
    assert stage.hours == pytest.approx((50 * 30 / 10 + 20) / 3600)
    assert stage.hours_between == pytest.approx(((1000 / 10 + 20) / 3600, (2000 / 10 + 20) / 3600))
    assert stage.cost == pytest.approx(stage.hours * (2 * 1.5 + 5 * 2.0), abs=1e-4)


@pytest.mark.parametrize(
    ("decode_workers", "models", "bound", "hours"),
    [(20, 5, "decode 80 %", 1000 * 5 / 20 / 3600), (100, 5, "model:taste 100 %", 1000 * 1 / 5 / 3600)],
)
def test_stage_of_two_pools_takes_as_long_as_the_slower_one(decode_workers, models, bound, hours):
    """A unit is 5 s of decoding, resizing and a scorer without a model, 1 s of a model and a little writing."""
    phases = {"decode": 4.0, "resize": 0.5, "model:sharpness": 0.5, "model:taste": 1.0, "write": 0.001}
    row = {"kind": "unit", "stage": "score", "source": "a", "worker": "w", "requests": 1, "rows_in": 100}
    row |= {"rows_kept": 100, "bytes_out": 1, "wall_s": 6.001, "phases_s": phases}
    rows = [{**row, "started": number * 7.0} for number in range(2)]
    sizes = {"a": SourceSize(units=1000, bytes=1000, measured_units=2, measured_bytes=2)}
    pool = Pool(workers=models, gpus=1.0, decode_workers=decode_workers, model_phases=frozenset({"model:taste"}))
    cluster = Cluster(gpu_price_per_hour=3.0)
    (stage,) = estimate_stages(rows, sizes, {"a": "image"}, {"score": pool}, cluster)
    assert (stage.decode_workers, stage.workers, stage.bound_by) == (decode_workers, models, bound)
    assert stage.hours == pytest.approx(hours)
    assert stage.hours_between == pytest.approx((hours, hours))
    assert stage.cost == pytest.approx(hours * models * 3.0, abs=1e-4)


def test_stage_of_two_pools_waits_for_the_driver_where_writing_is_slowest():
    row = {"kind": "unit", "stage": "score", "source": "a", "worker": "w", "requests": 1, "rows_in": 9, "started": 1.0}
    row |= {"rows_kept": 9, "bytes_out": 1, "wall_s": 3.0, "phases_s": {"decode": 2.0, "write": 1.0}}
    sizes = {"a": SourceSize(units=100, bytes=100, measured_units=1, measured_bytes=1)}
    pool = Pool(workers=4, gpus=0.0, decode_workers=50)
    (stage,) = estimate_stages([row], sizes, {"a": "image"}, {"score": pool}, Cluster())
    assert (stage.bound_by, stage.hours) == ("write 100 %", pytest.approx(100 / 3600))


def test_workers_in_all_are_shared_out_as_the_recipe_does():
    assert shared_out(None, 4, 32) == (4, 32)
    assert shared_out(72, 4, 32) == (8, 64)
    assert shared_out(3, 4, 32) == (1, 2)
    assert shared_out(1, 4, 32) == (1, 1)


def test_aim_of_two_pools_divides_each_phase_by_the_workers_that_do_it():
    """Over all 36 workers decoding would seem the limit; the four with models need 25 s, the decoders 10 s."""
    phases = {"decode": 320.0, "model:taste": 100.0, "write": 2.0}
    found = efficiency(wall_s=30.0, cpu_s=422.0, phases_s=phases, cores=36.0, gpus=1.0, workers=4, decode_workers=32)
    assert (found.ideal_s, found.ratio) == (25.0, pytest.approx(1.2))
    assert "model:taste alone, 100.0 s over 4 workers" in str(found)
    assert efficiency(wall_s=30.0, cpu_s=1.0, phases_s=phases, cores=1.0, gpus=1.0, workers=4).ideal_s == 80.0


def test_estimate_of_films_cuts_and_scores_some_of_their_seconds_and_tells_all(tmp_path, capsys):
    clips = segments(tmp_path / "data" / "clips", 24)
    changes = {"filter.video.scenes.unit_seconds": 4, "filter.video.scenes.min_seconds": 0.5, "tokenize.video.fps": 4}
    path = tiny.write_recipe(
        tmp_path / "recipe.yaml", tmp_path / "data", str(tmp_path / "root"), changes, sources=("clips",)
    )
    assert main(["estimate", str(path), "--units", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    size = told["sources"]["clips"]
    assert size["film_s"] == pytest.approx(len(clips), rel=0.01)
    assert size["measured_film"] == pytest.approx(8 / len(clips), rel=0.01)
    rows = {row["stage"]: row for row in told["stages"]}
    assert rows["ingest"]["rows"] == len(clips)
    for stage in ("split", "score", "select"):
        assert rows[stage]["rows"] == pytest.approx(len(clips), abs=1), stage
        assert rows[stage]["measured_units"] == 2
    assert main(["run", str(path), "--until", "score", "--json"]) == 0
    capsys.readouterr()
    assert main(["status", str(path), "--json"]) == 0
    film_s = {row["stage"]: row["film_s"] for row in json.loads(capsys.readouterr().out)["stages"]}
    assert film_s == {"ingest": len(clips), "split": len(clips), "score": 0, "select": 0} | film_s
