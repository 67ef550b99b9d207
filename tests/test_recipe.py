"""Recipes: what is wrong is told with file, key path, what was found and what is allowed; nothing heavy is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median

import pytest
import yaml
from tests import tiny

from tokenmill.errors import RecipeError
from tokenmill.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return tiny.write_recipe(tmp_path / "recipe.yaml", tmp_path / "data", str(tmp_path / "root"))


def _changed(path: Path, key: str, value: object) -> Path:
    content = yaml.safe_load(path.read_text())
    *parents, last = key.split(".")
    place = content
    for part in parents:
        place = place.setdefault(part, {})
    place[last] = value
    path.write_text(yaml.safe_dump(content))
    return path


def test_recipe_as_written_is_read(written):
    recipe = load_recipe(written)
    assert list(recipe.sources) == ["scenes", "photos", "clips", "text"]
    assert recipe.execution.executor == "inline"


def test_recipe_of_the_demo_is_valid():
    for path in sorted((ROOT / "pipelines" / "recipes").glob("*.yaml")):
        assert isinstance(load_recipe(path), Recipe)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("execution.workers", 0, ["execution.workers", "greater than or equal to 1", "found 0"]),
        ("execution.executor", "spark", ["execution.executor", "'ray' or 'inline'", "found 'spark'"]),
        ("execution.wokers", 2, ["execution.wokers", "no such key", "workers"]),
        ("filter.image.rule", {}, ["filter.image.rule", "no such key", "rules"]),
        ("filter.audio", {}, ["filter.audio", "'image'"]),
        ("tokenize.image.min_area", "many", ["tokenize.image.min_area", "integer", "found 'many'"]),
        ("sources.a b", {"kind": "jsonl", "url": "x"}, ["sources.a b"]),
        ("sources.text", {"kind": "jsonl"}, ["sources.text.url", "is missing"]),
        ("sources", {}, ["sources", "at least 1"]),
        ("train.model.heads", 7, ["train.model", "heads"]),
        ("plan.context", 5, ["plan.context", "32", "found 5"]),
        ("rot", "x", ["rot", "no such key", "root"]),
        ("plan.mix", {"text": -1}, ["plan.mix.text.epochs", "greater than or equal to 0", "found -1"]),
        ("plan.mix", {"text": [1]}, ["plan.mix.text", "epochs or share", "found [1]"]),
        ("plan.mix", {"text": {"shares": 1}}, ["plan.mix.text.shares", "no such key", "share, max_epochs, templates"]),
        ("plan.mix", {"text": {"share": 1.5}}, ["plan.mix.text.share", "less than or equal to 1", "found 1.5"]),
        ("plan.mix", {"text": {"share": 1, "epochs": 2}}, ["plan.mix.text: ", "share 1", "epochs 2", "one of them"]),
        ("plan.mix", {"text": {"max_epochs": 2}}, ["plan.mix.text.max_epochs"]),
        ("plan.mix", {"text": {"share": 0.7}}, ["plan.mix: ", "add up to 0.7", "text 0.7", "to be 1"]),
        ("plan.mix", {"text": {"share": 0.6}, "clips": {"share": 0.6}}, ["plan.mix: ", "1.2", "clips 0.6 + text 0.6"]),
        ("plan.mix", {"text": {"share": 1}, "clips": 2}, ["plan.mix: ", "leaves nothing to clips"]),
        ("plan.mix", {"text": {"share": 0.5}, "clips": {}}, ["plan.mix.clips: ", "share or epochs"]),
        ("plan.tokens", 1000, ["plan.tokens: ", "1000", "shares"]),
        ("plan.phases", {"one": {"contxt": 99}}, ["plan.phases.one.contxt", "no such key", "context"]),
        ("plan.phases", {"one": {"context": 9}}, ["plan.phases.one.context", "32", "found 9"]),
        ("plan.phases", {"one": {"min_piece": 129}}, ["plan.phases.one.min_piece: ", "129", "128"]),
        ("plan.mix", {"text": float("inf")}, ["plan.mix.text.epochs", "finite"]),
        ("plan.phases", {"one": {"tokens": 9}}, ["plan.phases.one.tokens: ", "shares"]),
        ("plan.phases", {"o e": {}}, ["plan.phases.o e"]),
        ("plan.min_piece", 200, ["plan.min_piece: ", "200", "128"]),
    ],
)
def test_recipe_with_a_wrong_key_or_value_tells_file_key_found_and_allowed(written, key, value, told):
    with pytest.raises(RecipeError) as caught:
        load_recipe(_changed(written, key, value))
    message = str(caught.value)
    assert message.startswith(f"{written}: ")
    assert "\n" not in message
    for part in told:
        assert part in message


def test_recipe_with_several_faults_names_them_all(written):
    _changed(written, "execution.workers", 0)
    with pytest.raises(RecipeError, match=r"execution\.workers.*plan\.context"):
        load_recipe(_changed(written, "plan.context", 5))


@pytest.mark.parametrize(("text", "told"), [("- a\n- b\n", "mapping"), ("a: [", "not YAML"), ("", "mapping")])
def test_recipe_that_is_none_says_so(tmp_path, text, told):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=told):
        load_recipe(tmp_path / "recipe.yaml")


def test_recipe_that_is_not_there_or_not_text_says_so(tmp_path):
    with pytest.raises(RecipeError, match=r"absent\.yaml"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="cannot read"):
        load_recipe(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00root")
    with pytest.raises(RecipeError, match=r"binary\.yaml"):
        load_recipe(tmp_path / "binary.yaml")


def test_override_replaces_a_value_and_is_read_as_yaml(written):
    recipe = load_recipe(written, ["execution.workers=5", "plan.exclude=[a, b]", "filter.text.rules.new=num_chars > 3"])
    assert recipe.execution.workers == 5
    assert recipe.plan.exclude == ("a", "b")
    assert recipe.filter["text"].rules["new"].keep == "num_chars > 3"


@pytest.mark.parametrize("override", ["workers", "=3", "root.deep=1", "execution.workers=[", "execution.workers=0"])
def test_override_that_is_wrong_is_named(written, override):
    with pytest.raises(RecipeError) as caught:
        load_recipe(written, [override])
    assert override.split("=")[0] in str(caught.value)


# What only the sections together can tell, through the command line: exit code 2, one line, at once, nothing started.
WRONG_TOGETHER = [
    ("sources.scenes.kind", "tarball", ["sources.scenes", "tarball", "webdataset"]),
    ("sources.scenes.modalty", "image", ["sources.scenes", "modalty", "modality"]),
    ("filter.image.scorers.sharpnes", {}, ["sharpnes", "sharpness"]),
    ("filter.image.rules.bad", "no_such_column > 1", ["filter.image.rules", "no_such_column", "min_side_px"]),
    ("filter.image.carry", ["nothing"], ["filter.image.carry", "nothing"]),
    ("caption.image", {"engine": "oracle"}, ["caption.image", "oracle", "metadata"]),
    ("plan.mix", {"absent": 1}, ["plan.mix", "absent", "scenes"]),
    ("plan.mix", {"text": {"epochs": 1, "templates": {"poem": 1}}}, ["plan.mix.text.templates", "poem", "language"]),
    ("plan.templates", {"picture": {"generation": 1}}, ["plan.templates", "'picture'", "image"]),
    ("plan.mix", {"text": {"share": 1}}, ["plan.mix: ", "missing: clips, photos, scenes"]),
    ("plan.phases", {"one": {"mix": {"absent": 1}}}, ["plan.phases.one.mix", "absent", "scenes"]),
    ("plan.phases", {"one": {}, "two": {"context": 64}}, ["train.phase", "'pretrain'", "one, two"]),
    ("plan.exclude_files", ["absent.txt"], ["plan.exclude_files", "absent.txt", "no such file"]),
]


@pytest.mark.parametrize(("key", "value", "told"), WRONG_TOGETHER)
def test_command_with_a_wrong_recipe_exits_2_with_one_line_before_anything_starts(written, key, value, told, capsys):
    from tokenmill.cli import main

    assert main(["run", str(_changed(written, key, value))]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    for part in told:
        assert part in line
    assert not (written.parent / "root").exists()


_OF_TESTS = ("PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS")


def _cpu_s(program: str, bytecode: Path) -> tuple[float, str]:
    """The CPU-seconds of a fresh interpreter that runs `program`, and what it prints.

    Bytecode is kept and threads are started, as for users, whatever the environment says: the first run compiles.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _OF_TESTS}
    env = {**kept, "PYTHONPYCACHEPREFIX": str(bytecode)}
    before = getrusage(RUSAGE_CHILDREN)  # to the microsecond, where os.times counts hundredths
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env)
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def test_wrong_recipe_is_refused_at_once_without_importing_ray_or_torch(written, tmp_path):
    _changed(written, "filter.image.rules.bad", "no_such_column > 1")
    program = f"""
import sys
from tokenmill.cli import main
code = main(["run", {str(written)!r}])
print(code, *sorted({{"ray", "torch", "transformers", "deepspeed"}} & set(sys.modules)))
"""
    # Against the bare imports of the libraries that the check needs, pair by pair: seconds alone would measure the
    # machine, and a machine is not as fast for all of a minute. The check is some 2 times their CPU time; with Ray's
    # import it is 3 times, with torch's 7.
    libraries = "import numpy, PIL.Image, polars, pyarrow, pydantic, yaml"
    for one in (program, libraries):
        _cpu_s(one, tmp_path / "bytecode")
    times = []
    for _ in range(7):
        used, printed = _cpu_s(program, tmp_path / "bytecode")
        assert printed.split() == ["2"]
        times.append(used / _cpu_s(libraries, tmp_path / "bytecode")[0])
    assert median(times) < 2.3
