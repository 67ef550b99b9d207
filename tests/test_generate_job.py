"""Tables of prompts as a stage: what comes back, what of bad rows, and the same bytes however often it was killed."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import polars as pl
import pytest
from PIL import Image
from tests.drawing_jobs import FAILED, ROWS, checked, job_recipe, write_export, write_rows
from tests.harness import Commands, faults_in, run_alone
from tests.test_pipelines_generation import V

from tokenmill.cli import main
from tokenmill.errors import RecipeError, RunError
from tokenmill.generate.drawing import Drawing
from tokenmill.generate.drawn_files import read_about
from tokenmill.generate.model import load_model
from tokenmill.generate.pictures import parse_pictures
from tokenmill.generate.sample import draw_documents
from tokenmill.generate.sampling import Sampling
from tokenmill.inspection import inspect_path
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.drawing_jobs import READ_ONLY, JobOptions, draw_jobs
from tokenmill.pipelines.drawing_prompts import sample_seed
from tokenmill.pipelines.drawn import DrawnSample, drawn_samples, failed_rows
from tokenmill.pipelines.report_html import join
from tokenmill.pipelines.report_jobs import jobs_shown
from tokenmill.pipelines.report_pictures import Album
from tokenmill.pipelines.runner import IncompleteStageError
from tokenmill.pipelines.status import render_status, status_of
from tokenmill.verification import verify_path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root on which the job was run once, undisturbed; `prompts.jsonl` lies beside it."""
    folder = tmp_path_factory.mktemp("job")
    write_rows(folder / "prompts.jsonl")
    write_export(folder / "root", folder / "model")
    draw_jobs(checked(folder / "root", folder / "prompts.jsonl"))
    return folder / "root"


def samples_of(root: Path, **job: Any) -> list[DrawnSample]:
    recipe = checked(root, root.parent / "prompts.jsonl", job)
    return list(drawn_samples(draw_jobs(recipe, options=READ_ONLY)["boxes"]))


def test_samples_come_back_with_their_row_whole_and_a_file_that_says_how_it_was_drawn(root):
    found = samples_of(root)
    assert [(one.number, one.sample) for one in found] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (5, 0), (8, 0), (8, 1)
    ]  # fmt: skip
    assert [one.row for one in found] == [ROWS[one.number] for one in found]
    assert [one.prompt_key for one in found[2:4]] == ["000000", "two"]
    assert [one.seed for one in found[-2:]] == [7, 8]
    assert found[4].seed == sample_seed(0, 1, 1)
    assert len({one.seed for one in found}) == len({one.key for one in found}) == len(found)
    for one in found:
        if one.extension == "png":
            image = Image.open(io.BytesIO(one.data))
            assert image.size == (one.grid[2] * 8, one.grid[1] * 8)
        told = read_about(one.data)
        assert (told["prompt"], told["seed"], told["key"]) == (one.prompt, one.seed, one.prompt_key)
    (clip,) = (one for one in found if one.extension == "mp4")
    assert (clip.grid, clip.fps, clip.seconds) == ((2, 2, 2), 8.0, 1.0)
    with av.open(io.BytesIO(clip.data)) as container:
        assert len(list(container.decode(video=0))) == 8


def test_stored_ids_are_those_that_the_sampler_draws_for_the_row_alone(root):
    model = load_model(root / "checkpoints/main/export")
    for one in (samples_of(root)[index] for index in (1, 6, 8)):
        alone = Drawing(
            prompt=one.prompt, negative=one.negative, seed=one.seed, fps=one.fps, seconds=one.seconds,
            frames=one.grid[0], height=one.grid[1], width=one.grid[2],
        )  # fmt: skip
        (ids,) = draw_documents(model, [alone], Sampling())
        assert np.array_equal(ids, one.ids)
        (picture,) = parse_pictures(one.ids, V)
        assert picture.codes_thw.shape == one.grid


def test_bad_rows_are_rows_with_a_reason_and_the_counts_add_up(root):
    snapshot = draw_jobs(checked(root, root.parent / "prompts.jsonl"), options=READ_ONLY)["boxes"]
    counts = snapshot.counts
    assert (counts.rows_in, counts.kept, counts.out) == (len(ROWS), 4, 9)
    assert dict(counts.failed) == FAILED
    rows = failed_rows(snapshot)
    assert dict(rows["fail_reason"].value_counts().iter_rows()) == FAILED
    assert rows["number"].to_list() == [2, 3, 4, 6, 7, 9]
    assert json.loads(rows.row(1, named=True)["metadata"]) == ROWS[3]
    assert rows.filter(pl.col("number") == 3)["fail_message"].item() == "height 33 is no multiple of 8 pixels a code"
    assert (snapshot.totals["pictures"], snapshot.totals["clips"]) == (8, 1)


def test_verify_inspect_and_status_know_the_folder_and_a_changed_byte_is_found(root, tmp_path):
    prompts = root.parent / "prompts.jsonl"
    copy = Path(shutil.copytree(root, tmp_path / "root"))
    assert verify_path(str(copy), {}, deep=True).faults == []
    folder = draw_jobs(checked(copy, prompts), options=READ_ONLY)["boxes"].folder
    tar = sorted((copy / folder.path).glob("*.tar"))[0]
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    assert len(verify_path(str(copy), {}, deep=True).faults) == 2  # the archive, and the member in it


def test_export_writes_every_sample_once_by_a_pattern_and_inspect_shows_one(root, tmp_path, capsys):
    prompts, recipe, to = root.parent / "prompts.jsonl", tmp_path / "recipe.yaml", tmp_path / "to"
    recipe.write_text(json.dumps(job_recipe(root, prompts)))
    names = "{number:05d}/samples/{sample:04d}.{extension}"
    command = ["export-drawn", str(recipe), "--job", "boxes", "--to", str(to), "--names", names]
    assert main(command) == 0
    found = samples_of(root)
    assert capsys.readouterr().out == f"{to}: 9 files written, 0 there already\n"
    (to / "00001/samples/0002.png").unlink()
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["written"], told["there"]) == (1, 8)
    for one in found:
        assert (to / f"{one.number:05d}/samples/{one.sample:04d}.{one.extension}").read_bytes() == one.data
    told = [json.loads(line) for line in (to / "samples.jsonl").read_text().splitlines()]
    assert [(row["row"], row["seed"]) for row in told] == [(one.row, one.seed) for one in found]
    for pattern, why in (
        ("{number}.png", "twice"),
        ("../{key}", "no file of the folder"),
        ("{colour}", "is no pattern"),
    ):
        assert main([*command[:-1], pattern]) == 2
        assert why in capsys.readouterr().err
    drawn = draw_jobs(checked(root, prompts), options=READ_ONLY)["boxes"]
    tar = root / drawn.folder.at(drawn.commits[0].data.name)
    described, _ = inspect_path(str(tar), found[0].key, tmp_path)
    assert Path(described["picture"]).read_bytes() == found[0].data and json.loads(described["json"]) == found[0].row


def test_report_shows_some_of_what_a_job_drew(root):
    (text,) = map(str, [join(*jobs_shown(checked(root, root.parent / "prompts.jsonl"), Album()))])
    assert "Job boxes: 9 samples of 4 prompts; not drawn: bad_json 1" in text
    assert text.count("data:image/png") == 8 and text.count("data:video/mp4") == 1 and "ein Café" in text


def test_more_prompts_draw_only_what_is_new_and_other_settings_are_another_folder(root, tmp_path):
    copy, prompts = Path(shutil.copytree(root, tmp_path / "root")), tmp_path / "prompts.jsonl"
    more = [*ROWS[:9], {"prompt": "one more"}]
    first = draw_jobs(checked(copy, write_rows(prompts)), options=READ_ONLY)["boxes"]
    with pytest.raises(IncompleteStageError, match="1 of 4 units"):
        draw_jobs(checked(copy, write_rows(prompts, more)), options=READ_ONLY)
    second = draw_jobs(checked(copy, prompts))["boxes"]
    assert [commit.unit for commit in second.commits[:3]] == [commit.unit for commit in first.commits[:3]]
    assert second.counts.kept == 5
    other = draw_jobs(checked(copy, prompts, {"top_p": 0.9}), options=JobOptions(limit=1))["boxes"]
    assert other.folder.path != second.folder.path and other.counts.rows_in == 3
    again = draw_jobs(checked(copy, prompts), options=JobOptions(retry_failed=True))["boxes"]
    assert again.digest == second.digest  # nothing that failed ends otherwise


def test_job_without_its_table_or_model_and_with_a_default_size_that_cannot_be_says_so(root, tmp_path):
    prompts = root.parent / "prompts.jsonl"
    for job, error, told in (
        ({"prompts": str(tmp_path / "none.jsonl")}, RecipeError, r"generate\.jobs\.boxes\.prompts: there is no"),
        ({"prompts": str(root / "checkpoints/main/export/config.json")}, RecipeError, "is no table"),
        ({"model": str(tmp_path)}, RecipeError, r"generate\.jobs\.boxes\.model"),
        ({"width": 50}, RunError, r"generate\.jobs\.boxes\.width: 50 is no multiple of 8"),
        ({"device": "cuda:7", "seed": 3}, RunError, "cuda:7"),
    ):
        with pytest.raises(error, match=told):
            draw_jobs(checked(root, prompts, job))
    with pytest.raises(RunError, match="no exported model"):
        draw_jobs(checked(tmp_path / "empty", prompts))
    with pytest.raises(RecipeError, match=r"generate\.jobs\.boxes\.samples"):
        checked(root, prompts, {"samples": 0})


def test_lines_of_text_and_a_column_of_another_name_are_prompts_too(root, tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"a box\n\n\xff\na ball\n")
    texts = draw_jobs(checked(root, tmp_path / "prompts.txt", {"samples": 1}))["boxes"]
    assert [one.prompt for one in drawn_samples(texts)] == ["a box", "a ball"]
    assert dict(texts.counts.failed) == {"bad_encoding": 1}
    pl.DataFrame({"caption": ["a box"], "height": [427], "id": [9]}).write_parquet(tmp_path / "coco.parquet")
    job = {"prompt_field": "caption", "row_keys": [], "samples": 1}
    (one,) = drawn_samples(draw_jobs(checked(root, tmp_path / "coco.parquet", job))["boxes"])
    assert (one.grid, one.row) == ((1, 4, 6), {"caption": "a box", "height": 427, "id": 9})


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as running:
        yield running


def files_of_the_job(root: Path, prompts: Path) -> dict[str, str]:
    """Return the digests of all a job's folder holds, but for logs and what a kill left half written."""
    folder = root / draw_jobs(checked(root, prompts), options=READ_ONLY)["boxes"].folder.path
    kept = [
        path for name in ("*.tar", "*.parquet", "*.json", "commits/*.json", "snapshots/*") for path in folder.glob(name)
    ]
    assert len(kept) > 12
    return {str(path.relative_to(folder)): sha256_hex(path.read_bytes()) for path in kept}


@pytest.mark.parametrize("point", ["commit:between-files:2", "commit:before-record:3"])
def test_killed_and_resumed_leaves_the_same_bytes(point, commands, root, tmp_path):
    shutil.copytree(root / "checkpoints", tmp_path / "root/checkpoints")
    prompts, recipe = root.parent / "prompts.jsonl", tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(job_recipe(tmp_path / "root", prompts)))
    store = open_store(str(tmp_path / "root"))
    assert commands.run("generate", recipe, fault=point).was_killed
    assert faults_in(store) == []
    told = render_status(status_of(checked(Path(store.url), prompts)))
    assert re.search(rf"generate boxes +{int(point[-1]) - 1}/4 units", told)
    resumed = commands.run("generate", recipe)
    resumed.check()
    assert "boxes: in 10  kept 4" in resumed.text and "8 pictures, 1 clips" in resumed.text
    assert faults_in(store) == []
    assert files_of_the_job(tmp_path / "root", prompts) == files_of_the_job(root, prompts)


@pytest.mark.ray
def test_two_workers_on_ray_one_of_which_dies_leave_the_same_bytes(root, tmp_path):
    shutil.copytree(root / "checkpoints", tmp_path / "root/checkpoints")
    prompts, recipe = root.parent / "prompts.jsonl", tmp_path / "recipe.yaml"
    pools = {"executor": "ray", "pools": {"generate": {"workers": 2, "cpus": 1}}}
    recipe.write_text(json.dumps(job_recipe(tmp_path / "root", prompts, execution=pools)))
    once = tmp_path / "died"
    fault = {"TOKENMILL_FAULT": "commit:before-record:2", "TOKENMILL_FAULT_ONCE": str(once)}
    run_alone("generate", recipe, environment=fault).check()
    assert once.exists()
    assert faults_in(open_store(str(tmp_path / "root"))) == []
    assert files_of_the_job(tmp_path / "root", prompts) == files_of_the_job(root, prompts)


def test_two_jobs_of_one_model_open_it_once(root, tmp_path, monkeypatch):
    opened: list[Any] = []

    def counted(path: Any, **how: Any) -> Any:
        opened.append(path)
        return load_model(path, **how)

    monkeypatch.setattr("tokenmill.generate.opened_model.load_model", counted)
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    one = checked(root, prompts, {"unit_rows": 1, "samples": 1}).generate.jobs["boxes"]
    found = draw_jobs(checked(root, prompts), {"one": one, "two": one.model_copy(update={"seed": 1})})
    assert len(opened) == 1
    seeds = [[sample.seed for sample in drawn_samples(snapshot)] for snapshot in found.values()]
    assert seeds == [[sample_seed(seed, number, 0) for number in (0, 1)] for seed in (0, 1)]
