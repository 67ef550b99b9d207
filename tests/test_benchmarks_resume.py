"""A benchmark's folder: what a kill, a shard, another model or a damaged file leave of it, and what cannot be drawn."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from tests.drawn_benchmarks import SIZE, export_model, names_below

from tokenmill.cli import main
from tokenmill.verification import verify_path

PROMPTS = "a red apple\na blue cup\na green bench\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return export_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("prompts") / "color_val.txt"
    path.write_text(PROMPTS)
    return path


@pytest.fixture(scope="module")
def whole(model, prompts, tmp_path_factory) -> Path:
    """Draw everything at once."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(words(model, prompts, folder)) == 0
    return folder


def words(model: Path, prompts: Path, out: Path, *more: str) -> list[str]:
    named = ["evaluate", "t2i-compbench", "samples=3", "--model", str(model), "--prompts", str(prompts)]
    return [*named, "--out", str(out), *SIZE, "--batch-size", "2", *more]


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "samples").iterdir()}


def tokens(folder: Path) -> pl.DataFrame:
    tables = [pl.read_parquet(path) for path in sorted(folder.glob("tokens-*.parquet"))]
    return pl.concat(tables).sort("file", "sample")


def counted(capsys: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_run_killed_while_it_writes_goes_on_and_ends_with_the_same_files(model, prompts, whole, tmp_path, capsys):
    command = [sys.executable, "-m", "tokenmill.cli", *words(model, prompts, tmp_path)]
    died = subprocess.run(command, env={**os.environ, "TOKENMILL_FAULT": "storage:half-written:8"}, check=False)
    assert died.returncode == -9
    there = pictures(tmp_path)
    named = {file.removeprefix("samples/") for file in tokens(tmp_path)["file"]}
    assert named < set(there) < set(pictures(whole))
    assert all(data == pictures(whole)[name] for name, data in there.items())
    assert main([*words(model, prompts, tmp_path), "--json"]) == 0
    found = counted(capsys)
    assert (found["files"], found["samples"]) == (9, 9)
    assert found["new_files"] == 9 - len(named)
    assert pictures(tmp_path) == pictures(whole)
    assert_frame_equal(tokens(tmp_path).unique(), tokens(whole), check_row_order=False)


def test_run_again_draws_nothing_and_opens_no_model(model, prompts, whole, tmp_path, capsys):
    before = {name: (whole / name).stat().st_mtime_ns for name in names_below(whole) if name != "run.json"}
    capsys.readouterr()
    assert main([*words(model, prompts, whole), "--json"]) == 0
    assert counted(capsys)["new_files"] == 0
    assert {name: (whole / name).stat().st_mtime_ns for name in before} == before


def test_file_that_lost_bytes_or_is_gone_is_drawn_again(model, prompts, whole, tmp_path, capsys):
    assert main(words(model, prompts, tmp_path)) == 0
    cut, gone = tmp_path / "samples" / "a red apple_000001.png", tmp_path / "samples" / "a blue cup_000004.png"
    cut.write_bytes(cut.read_bytes()[:-20])
    gone.unlink()
    capsys.readouterr()
    assert main([*words(model, prompts, tmp_path), "--json"]) == 0
    assert counted(capsys)["new_files"] == 2
    assert pictures(tmp_path) == pictures(whole)


def test_shards_in_any_order_and_a_limit_give_what_the_whole_gives(model, prompts, whole, tmp_path, capsys):
    assert main(words(model, prompts, tmp_path, "--limit", "1")) == 0
    assert set(pictures(tmp_path)) == {f"a red apple_{number:06d}.png" for number in range(3)}
    assert main(words(model, prompts, tmp_path, "--shard", "2/2")) == 0
    assert len(pictures(tmp_path)) == 6
    assert main(words(model, prompts, tmp_path, "--shard", "1/2", "--batch-size", "8")) == 0
    assert pictures(tmp_path) == pictures(whole)
    assert json.loads((tmp_path / "run.json").read_text())["drawn"] == {"files": 9, "samples": 9}


def test_two_processes_fill_one_folder_at_once(model, prompts, whole, tmp_path):
    commands = [
        [sys.executable, "-m", "tokenmill.cli", *words(model, prompts, tmp_path, "--shard", f"{n}/2")] for n in (1, 2)
    ]
    for process in [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]:
        assert process.wait() == 0
    assert pictures(tmp_path) == pictures(whole)
    assert json.loads((tmp_path / "run.json").read_text())["drawn"] == {"files": 9, "samples": 9}


@pytest.mark.parametrize(
    ("change", "told"),
    [(["--seed", "1"], "settings.seed"), (["--guidance", "3"], "settings.guidance"), (["samples=4"], "prompts")],
)
def test_folder_of_other_settings_is_refused_by_name(change, told, model, prompts, whole, capsys):
    assert main([*words(model, prompts, whole), *change]) == 2
    assert f"was drawn with other {told}; take another --out" in capsys.readouterr().err
    assert main([*words(model, prompts, whole)]) == 0


def test_folder_of_another_model_is_refused(prompts, whole, tmp_path, capsys):
    other = export_model(tmp_path / "other", seed=1)
    assert main(words(other, prompts, whole)) == 2
    assert "was drawn with other model" in capsys.readouterr().err


def test_prompt_beyond_the_context_is_left_out_and_the_others_are_drawn(tmp_path, capsys):
    model = export_model(tmp_path / "small", context=48)
    path = tmp_path / "color_val.txt"
    path.write_text("a cup\n" + "very " * 12 + "long\na bowl\n")
    assert main([*words(model, path, tmp_path / "out"), "--json"]) == 0
    found = counted(capsys)
    assert found["left_out"] == {"beyond_context": 3}
    assert (found["new_files"], found["files"]) == (6, 6)
    assert len(pictures(tmp_path / "out")) == 6


def test_picture_that_no_context_holds_ends_the_run_and_claims_no_folder(model, prompts, tmp_path, capsys):
    large = [*words(model, prompts, tmp_path), "--height", "256", "--width", "256"]
    assert main(large) == 2
    assert "the model's context holds 512" in capsys.readouterr().err
    assert main(words(model, prompts, tmp_path)) == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--height", "20"], "20 is no multiple of 8 pixels a code"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--prompts", "/nowhere/x.txt"], "no file ending in .txt"),
        (["--limit", "0"], "at least 1"),
        (["--top-p", "0"], "top_p"),
        (["samples=many"], "samples"),
        (["colours=1"], "unknown setting 'colours'"),
        (["--device", "nothing"], "device"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(change, told, model, prompts, tmp_path, capsys):
    assert main([*words(model, prompts, tmp_path), *change]) in (1, 2)
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_unknown_benchmark_names_those_that_are_known(capsys):
    assert main(["evaluate", "geneva"]) == 2
    assert "allowed: coco30k, dpg-bench, geneval, t2i-compbench, vbench" in capsys.readouterr().err


def faults(folder: Path, *, deep: bool) -> dict[str, str]:
    return {fault.path: fault.what for fault in verify_path(str(folder), {}, deep=deep).faults}


def test_folder_is_verified_by_the_tables_of_what_was_drawn(whole, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(whole, folder)
    assert faults(folder, deep=True) == {}
    gone, cut, changed, *_ = (folder / "samples" / name for name in sorted(pictures(folder)))
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    data = changed.read_bytes()
    changed.write_bytes(bytes([*data[:-1], data[-1] ^ 1]))
    shallow = faults(folder, deep=False)
    assert list(shallow) == [f"samples/{gone.name}", f"samples/{cut.name}"]
    assert faults(folder, deep=True) == shallow | {f"samples/{changed.name}": "sha256 differs from its record"}
    table = next(folder.glob("tokens-*.parquet"))
    table.write_bytes(table.read_bytes()[:-9])
    assert faults(tmp_path, deep=False)[f"out/{table.name}"] == "sha256 differs from the digits in its name"
