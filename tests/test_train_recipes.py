"""The recipes in train/recipes: they are read as shipped, and their sizes fit each other and the machines they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenmill.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[1] / "train" / "recipes"
# recipe → machines it is made for, and what a rank must be able to share or hold
MACHINES = {"100m": 1, "1b": 2, "8b-phase1": 8, "8b-phase2": 8, "qft": 1, "instruct": 1, "dpo": 1}
PHASES = {"8b-phase1": (5_120, None), "8b-phase2": (131_072, "8b-phase1")}
TUNING = {"qft": "8b-phase2", "instruct": "8b-phase2", "dpo": "qft"}


def recipe_of(name: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml")


def test_every_recipe_of_the_trainer_is_looked_at() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml") if not path.stem.startswith("vision_tokenizer")} == set(
        MACHINES
    )


@pytest.mark.parametrize("name", MACHINES)
def test_recipe_shares_its_packs_evenly_over_the_machines_it_is_made_for(name: str) -> None:
    train = recipe_of(name).train
    groups = MACHINES[name] * train.ranks // train.sequence_parallel

    assert train.ranks % train.sequence_parallel == 0  # a group stays inside of a machine
    assert train.global_packs_per_step % (groups * train.micro_packs) == 0
    assert (train.precision, train.device) == ("bf16", "cuda")


@pytest.mark.parametrize("name", MACHINES)
def test_recipe_trains_on_a_plan_it_describes_and_is_evaluated_on_what_that_leaves_out(name: str) -> None:
    recipe = recipe_of(name)
    plans, train = recipe.plan.resolved(), recipe.train

    assert plans[train.phase].part == "training"
    assert train.run == name
    if train.evaluation is not None:
        unseen = plans[train.evaluation.phase]
        assert (unseen.part, unseen.held_out) == ("held_out", plans[train.phase].held_out)
        assert unseen.context == plans[train.phase].context


@pytest.mark.parametrize("name", PHASES)
def test_phases_of_emu3_have_the_published_figures(name: str) -> None:
    recipe = recipe_of(name)
    plan, train = recipe.plan.resolved()[recipe.train.phase], recipe.train

    assert (plan.context, train.start_from) == PHASES[name]
    assert (plan.vision_weight, plan.text_weight) == (0.5, 1.0)
    assert (train.lr, train.schedule, train.min_lr_share) == (5e-5, "cosine", 0.0)
    assert train.model.preset == "emu3-8b"
    assert ("films" in recipe.sources) == (name == "8b-phase2")


def test_phases_of_emu3_hold_about_as_many_ids_a_gpu() -> None:
    first, second = recipe_of("8b-phase1"), recipe_of("8b-phase2")
    held = [
        recipe.plan.resolved()[recipe.train.phase].context * recipe.train.micro_packs // recipe.train.sequence_parallel
        for recipe in (first, second)
    ]

    assert held == [20_480, 16_384]
    assert first.root == second.root


def test_phases_alone_and_in_one_recipe_are_trained_alike() -> None:
    together = load_recipe(RECIPES.parents[1] / "pipelines" / "recipes" / "emu3.yaml").train.resolved()

    for name, phase in (("8b-phase1", "first"), ("8b-phase2", "second")):
        own = {"run", "start_from", "evaluation", "phases"}
        alone = recipe_of(name).train
        assert alone.model_dump(exclude=own) == together[phase].model_dump(exclude=own)
    assert together["second"].start_from == together["first"].run


@pytest.mark.parametrize("name", TUNING)
def test_tuning_starts_from_another_run_of_the_same_root(name: str) -> None:
    recipe = recipe_of(name)

    assert recipe.train.start_from == TUNING[name]
    assert recipe.train.start_from in MACHINES
    assert recipe.root == recipe_of("8b-phase2").root


def test_quality_tuning_is_chosen_by_scores_larger_and_falls_to_nothing_in_a_line() -> None:
    recipe = recipe_of("qft")

    assert recipe.tokenize.image.min_area == recipe.tokenize.image.max_area == 720 * 720
    assert {"aesthetic", "clip_similarity"} <= set(recipe.filter["image"].scorers)
    assert "aesthetic" in recipe.filter["image"].rules["quality"].keep
    assert (recipe.plan.text_weight, recipe.plan.vision_weight) == (0.0, 1.0)
    assert (recipe.train.schedule, recipe.train.min_lr_share) == ("linear", 0.0)


def test_instruction_tuning_has_the_rates_of_the_released_one_and_conversations_alone() -> None:
    recipe = recipe_of("instruct")
    train = recipe.train

    assert recipe.plan.templates == {"document": {"chat": 1.0}}
    assert recipe.plan.vision_weight == 0.0
    assert (train.lr, train.lr * train.min_lr_share, train.warmup_steps) == (1e-5, pytest.approx(1e-6), 30)
    assert (train.weight_decay, train.clip, train.betas, train.eps) == (0.1, 5.0, (0.9, 0.95), 1e-6)
    assert (recipe.tokenize.document.min_area, recipe.tokenize.document.max_area) == (512**2, 1024**2)


def test_preferences_are_pairs_of_drawn_tokens_as_large_as_what_quality_tuning_learned() -> None:
    recipe, quality = recipe_of("dpo"), recipe_of("qft")

    assert recipe.sources["pairs"].kind == "tokens"
    assert recipe.plan.templates == {"pair": {"preference": 1.0}}
    assert recipe.plan.context == quality.plan.context
    assert recipe.generate.height * recipe.generate.width == quality.tokenize.image.max_area
    assert recipe.generate.per_prompt in range(8, 11)
    assert recipe.train.preference is not None
    assert recipe.train.preference.next_token_weight > 0
