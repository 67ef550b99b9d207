"""The study's recipes at both sizes: all that can be told of them before hours of training."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.toyworld import study
from benchmarks.toyworld.sizes import QUICK
from benchmarks.toyworld.stages import Toy

from tokenmill.commands import make_chain
from tokenmill.recipe import load_recipe

_SHIPPED = ["tokenize.vision.name=scenes", "tokenize.vocabulary={name: bytes, codebook_size: 2048}"]


@pytest.mark.parametrize("what", list(study.SHARES))
@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("on_cuda", [True, False])
def test_recipe_of_each_model_of_the_study_is_one_that_runs(
    tmp_path: Path, what: str, *, quick: bool, on_cuda: bool
) -> None:
    size = QUICK if quick else study.FULL
    toy = Toy(out=tmp_path, size=size, overrides=(*size.overrides, *(study.ON_CUDA if on_cuda else ())))
    said = [one for one in toy.overrides if not one.startswith("tokenizer.")]
    recipe = load_recipe(
        toy.recipe, [*toy.places(), *_SHIPPED, *said, *study.changes_of("m", what, "medium", quick=quick)]
    )
    make_chain(recipe, {"tokenize"})
    shares = [recipe.plan.phases[phase].mix["pictures"].share for phase in ("pictures", "clips")]
    assert tuple(shares) == study.SHARES[what]
    assert recipe.train.precision == "bf16" and recipe.train.lr == (0.002 if on_cuda else 0.0008)
