"""What is wrong with the captions of a recipe is said by its key path, before anything starts and without Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.asked_captioner import install
from tests.asking import AskedRoot

from tokenmill.errors import RecipeError
from tokenmill.pipelines.chain import Chain
from tokenmill.pipelines.checks import check_chain


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AskedRoot:
    install(monkeypatch)
    return AskedRoot(folder=tmp_path / "asked", shards=1, samples=1)


def _refused(root: AskedRoot, image: Any, modality: str = "image") -> str:
    with pytest.raises(RecipeError) as error:
        check_chain(Chain(recipe=root.recipe({f"caption.{modality}": image})))
    return str(error.value)


def test_columns_that_are_the_same_on_disk_are_refused(root):
    columns = {"a": root.column(), "b": root.column(checks={"min_words": 9}, prices={"input_per_million": 3})}
    assert _refused(root, {"columns": columns}).startswith("caption.image.columns.b: asks the same as column a")
    columns["b"] = root.column(seed=1)
    columns["c"] = root.column(prompt="Else", sources={"scenes": {"prompt": root.column()["prompt"]}})
    told = _refused(root, {"columns": columns})
    assert told.startswith("caption.image.columns.c: asks the same as column a about source scenes")
    del columns["c"]
    check_chain(Chain(recipe=root.recipe({"caption.image": {"columns": columns}})))


def test_sources_of_a_column_have_to_be_of_its_modality_and_sound(root):
    told = _refused(root, {"columns": {"dense": root.column(sources={"films": {"prompt": "x"}})}})
    assert told == "caption.image.sources.films: no image source of that name; allowed: scenes" or told == (
        "caption.image.columns.dense.sources.films: no image source of that name; allowed: scenes"
    )
    told = _refused(root, root.column(sources={"scenes": {"frames": 0}}))
    assert told.startswith("caption.image.sources.scenes: frames: ") and "greater than or equal to 1" in told
    told = _refused(root, root.column(sources={"scenes": {"speed": 3}}))
    assert told.startswith("caption.image.sources.scenes: captioner 'logged': unknown setting 'speed'")


def test_prompts_with_unknown_fields_or_none_where_one_is_needed_are_refused(root):
    assert _refused(root, root.column(prompt="Say {titel}")).startswith("caption.image.prompt: ")
    several = {"columns": {"dense": root.column(prompt=["Say", "Say {metadata.title"])}}
    assert _refused(root, several).startswith("caption.image.columns.dense.prompt.1: ")
    assert _refused(root, root.column(system="{no}")).startswith("caption.image.system: ")
    assert _refused(root, root.column(checks={"languages": ["xx"]})).startswith("caption.image.checks: ")
    assert _refused(root, root.column(engine="nobody")).startswith("caption.image: unknown captioner 'nobody'")


def test_texts_have_no_captions(root):
    assert _refused(root, {"engine": "metadata"}, "text") == (
        "caption.text: a text is its own caption; allowed: image, video"
    )


def test_wrong_captions_are_refused_without_ray_or_torch(root):
    code = (
        "import sys, yaml, tokenmill.commands as c; from tests.asked_captioner import *;"
        "captioner.BUILT_IN[NAME] = WHERE;"
        "from tokenmill.recipe import load_recipe\n"
        "try: c.make_chain(load_recipe(sys.argv[1]))\n"
        "except Exception as error: print(error, [n for n in ('ray', 'torch') if n in sys.modules])"
    )
    path = root.write({"caption.image": root.column(prompt="Say {titel}")})
    here = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=here, check=True)
    assert done.stdout.startswith("caption.image.prompt: ") and done.stdout.strip().endswith("[]"), done.stdout


@pytest.mark.parametrize(
    ("use", "said"),
    [
        ([{}], "a slot without a column"),
        ([{"dense": float("nan")}], "dense has the weight nan"),
        ([{"dense": -1}], "dense has the weight -1.0"),
        (["pairs"], "no column of captions 'pairs'; allowed: dense"),
    ],
)
def test_slots_that_give_nothing_are_refused(root, use, said):
    columns = {"dense": root.column(), "pairs": root.column(form="questions")}
    with pytest.raises(RecipeError, match=said):
        root.recipe({"caption.image": {"columns": columns, "use": use}})


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_models_that_are_none_are_refused_before_anything_starts(root, tmp_path, engine):
    def told(model: str) -> str:
        return _refused(root, {"engine": engine, "prompt": "Say", "model": model})

    assert "is no folder here" in told(str(tmp_path / "nowhere"))
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text('{"model_type": "llava"}')
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"weights")
    assert told(str(tmp_path / "pickled")).startswith("caption.image: ")
    check_chain(
        Chain(recipe=root.recipe({"caption.image": {"engine": engine, "prompt": "Say", "model": "some/model"}}))
    )
