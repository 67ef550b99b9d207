"""The command line: exit codes, one-line errors, help and documentation for every command."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests import tiny

from tokenmill.cli import build_parser, main, parse

ROOT = Path(__file__).parents[1]
_WITHOUT_TARGET = ("inspect", "verify", "detokenize", "index-tokens", "pairs", "draw", "extend", "ask", "chat")
_WITHOUT_TARGET += ("evaluate-benchmark", "evaluate-lmms")


def commands() -> dict[str, argparse.ArgumentParser]:
    actions = build_parser()._subparsers._group_actions  # type: ignore[union-attr]
    return dict(actions[0].choices)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    tiny.write_data(folder / "data")
    return tiny.write_recipe(folder / "tiny.yaml", folder / "data", str(folder / "root"))


@pytest.mark.parametrize("name", sorted(commands()))
def test_command_has_help_and_stands_in_the_readme(name: str) -> None:
    parser = commands()[name]
    assert parser.description
    assert all(action.help for action in parser._actions)
    readme = (ROOT / "README.md").read_text()
    assert f"tokenmill {name}" in readme or f"|{name}" in readme or f"{name}|" in readme


def test_make_has_a_target_for_every_stage() -> None:
    text = (ROOT / "Makefile").read_text()
    for name in commands():
        if name not in _WITHOUT_TARGET:
            assert f" {name}" in text or f"\n{name}:" in text, name


@pytest.mark.parametrize(
    "words",
    [
        ["run", "r.yaml", "a.b=1", "c=2", "--until", "plan"],
        ["run", "r.yaml", "--until", "plan", "a.b=1", "c=2"],
        ["run", "--until", "plan", "r.yaml", "a.b=1", "--json", "c=2"],
    ],
)
def test_overrides_may_stand_on_either_side_of_the_options(words: list[str]) -> None:
    options = parse(words)
    assert (options.recipe, options.until, options.overrides) == ("r.yaml", "plan", ["a.b=1", "c=2"])


@pytest.mark.parametrize("words", [["run", "r.yaml", "--until", "plan", "more"], ["verify", "x", "--deep", "a=1"]])
def test_word_that_no_command_takes_ends_with_two(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(words)
    assert "unrecognized arguments" in capsys.readouterr().err


def test_run_until_plan_ends_with_zero_and_tells_every_stage(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe), "--until", "plan", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["stage"] for row in found["stages"]] == [
        "ingest", "split", "score", "select", "caption", "tokenize", "plan",
    ]  # fmt: skip
    for row in found["stages"]:
        assert row["in"] == row["kept"] + sum(row["dropped"].values()) + sum(row["failed"].values())


def test_status_tells_what_is_done(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe), "--until", "score"]) == 0
    capsys.readouterr()
    assert main(["status", str(recipe), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["stages"]
    assert {row["stage"] for row in rows} >= {"ingest", "split", "score"}
    assert all(row["done"] == row["total"] for row in rows if row["stage"] in ("ingest", "split", "score"))


def test_stage_before_its_inputs_ends_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_data(tmp_path / "data")
    path = tiny.write_recipe(tmp_path / "tiny.yaml", tmp_path / "data", str(tmp_path / "root"))
    assert main(["tokenize", str(path)]) == 1
    error = capsys.readouterr().err
    assert "units are missing" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("execution.worker=3", "execution.worker: no such key; allowed: executor, workers"),
        ("execution.workers=none", "execution.workers"),
        ("sources.scenes.kind=zip", "sources.scenes: unknown source 'zip'; allowed: arrow, documents, images, jsonl"),
        ("filter.image.rules.size=min_side > 3", "did you mean 'min_side_px'"),
        ("caption.image.engine=oracle", "unknown captioner 'oracle'; allowed: metadata, openai"),
        ("plan.mix.scene=1", "plan.mix: no source 'scene'; allowed: scenes"),
        ("train.phase=other", "train.phase"),
        ("nonsense", "an override is key.path=value"),
    ],
)
def test_wrong_recipe_ends_with_two_and_one_line(
    recipe: Path, override: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(recipe), override]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert str(recipe) in error or override in error


def test_wrong_recipe_is_told_in_two_seconds_without_ray_or_torch(recipe: Path) -> None:
    code = (
        "import sys, tokenmill.cli as cli; code = cli.main(sys.argv[1:]); "
        "heavy = {'ray', 'torch', 'deepspeed', 'transformers'} & set(sys.modules); print(code, sorted(heavy))"
    )
    began = time.perf_counter()
    command = [sys.executable, "-c", code, "run", str(recipe), "filter.image.rules.size=min_side > 3"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    assert found.stdout.strip() == "2 []"
    assert time.perf_counter() - began < 20  # two seconds on a quiet machine; this only catches a heavy import


def test_verify_of_a_flipped_byte_ends_with_one_and_names_the_file(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(recipe), "--until", "tokenize"]) == 0
    root = recipe.parent / "root"
    assert main(["verify", str(root), "--deep"]) == 0
    archive = next(root.glob("tokenize/scenes/*/*.tar"))
    data = bytearray(archive.read_bytes())
    data[700] ^= 1
    archive.write_bytes(data)
    capsys.readouterr()
    assert main(["verify", str(root), "--deep"]) == 1
    assert archive.name in capsys.readouterr().out
    data[700] ^= 1
    archive.write_bytes(data)
