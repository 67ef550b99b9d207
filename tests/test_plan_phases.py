"""A recipe of several phases: each is planned, told, kept and trained on as one of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests import tiny

from tokenmill.cli import main
from tokenmill.manifests.plans import open_plan
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.held_out import draw_documents
from tokenmill.pipelines.kept import GcOptions, collect
from tokenmill.pipelines.report_data import Run
from tokenmill.pipelines.report_plan import plans_part
from tokenmill.pipelines.runner import IncompleteStageError
from tokenmill.pipelines.status import render_status, status_of
from tokenmill.recipe import Recipe, check_recipe
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import build_vocabulary

PHASES = {
    "first": {"context": 64, "mix": {"text": {"share": 1.0, "max_epochs": 1.5}}},
    "second": {"window_documents": 5, "seed": 3, "vision_weight": 0.0},
}
CHANGES = {
    "plan": {
        "context": 256,
        "window_packs": 1,
        "held_out": 0.2,
        "exclude": ["nobody"],
        "split_long_clips": True,
        "phases": PHASES,
    },
    "train.phase": "second",
    "execution.executor": "inline",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phases")
    (folder / "data" / "text").mkdir(parents=True)
    rows = [
        {"id": f"t{n}", "text": f"Number {n} says so much of squares and circles. " * (1 + n % 7)} for n in range(60)
    ]
    (folder / "data" / "text" / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny.write_recipe(folder / "recipe.yaml", folder / "data", str(folder / "root"), CHANGES, sources=("text",))
    return folder


def recipe_of(folder: Path, **plan: Any) -> Recipe:
    value = tiny.recipe(folder / "data", str(folder / "root"), CHANGES, sources=("text",))
    return check_recipe(value | {"plan": value["plan"] | plan}, "phases")


def chain_of(recipe: Recipe, work: set[str] | None = None) -> Chain:
    given = {} if work is None else {"work": frozenset(work)}
    return Chain(recipe=recipe, options=ChainOptions(quiet=True, **given))


@pytest.fixture(scope="module")
def planned(folder: Path) -> Path:
    assert main(["run", str(folder / "recipe.yaml"), "--until", "plan", "--json"]) == 0
    return folder


def test_phases_are_the_plan_with_their_keys_said_anew():
    said = PlanSettings(context=128, held_out=0.5, mix={"a": 2.0}, phases=PHASES)
    found = said.resolved()
    assert list(found) == ["first", "second"]
    assert [(one.phase, one.context, one.held_out, one.seed) for one in found.values()] == [
        ("first", 64, 0.5, 0), ("second", 128, 0.5, 3)]  # fmt: skip
    assert set(found["first"].mix) == {"text"} and found["second"].of_source("a").epochs == 2
    assert PlanSettings(phase="only").resolved() == {"only": PlanSettings(phase="only")}
    alone = PlanSettings(**{**found["second"].model_dump(), "phases": {}})
    assert alone.model_dump() == found["second"].model_dump()


def test_phases_need_pieces_that_fit_their_own_context_alone():
    said = PlanSettings(min_piece=600, context=64, phases={"a": {"context": 5120}, "b": {"min_piece": 32}})
    assert {name: (one.context, one.min_piece) for name, one in said.resolved().items()} == {
        "a": (5120, 600), "b": (64, 32)}  # fmt: skip
    with pytest.raises(ValueError, match=r"phases\.b\.min_piece: 33 is above half the context, 32"):
        PlanSettings(context=64, phases={"a": {}, "b": {"min_piece": 33}})


def test_phases_are_planned_and_told_each(planned: Path, capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    assert main(["plan", str(planned / "recipe.yaml"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["stages"]
    assert {phase: one["context"] for phase, one in row["plans"].items()} == {"first": 64, "second": 256}
    assert row["num_packs"] == sum(one["num_packs"] for one in row["plans"].values())
    assert row["kept"] + sum(row["dropped"].values()) == row["in"]
    assert main(["plan", str(planned / "recipe.yaml")]) == 0
    told = capsys.readouterr().out
    assert "phase first: packs" in told and "100.0 % (asked 100.0 %), 1.5 epochs" in told


def test_status_tells_a_plan_that_cannot_be_met_beside_what_there_is(planned: Path):
    asked = {"one": {"context": 64, "mix": {"text": {"share": 1.0}}, "tokens": 10**9}, "second": {}}
    found = status_of(recipe_of(planned, phases=asked))
    assert {row["stage"] for row in found["stages"]} >= {"ingest", "tokenize"}
    assert found["waiting"] == ["plan"]
    assert "share 1 of 1,000,000,000 tokens" in found["refused"]["plan"]
    assert "plan cannot be done: plan.mix.text: share 1" in render_status(found)


def test_status_report_and_gc_know_every_phase(planned: Path):
    recipe = recipe_of(planned)
    rows = [row for row in status_of(recipe)["stages"] if row["stage"] == "plan"]
    assert [row["what"] for row in rows] == ["first", "second"]
    assert rows[1]["plan"]["context"] == 256 and rows[1]["total"] > 3
    assert "packs of 64" in render_status(status_of(recipe))
    run = Run(chain_of(recipe, set()))
    assert run.plan is not None and run.plan.phase == "second"
    page = str(plans_part(run.plans))
    assert "Plan of phase first" in page and "share asked" in page and "held out" in page
    other = recipe_of(planned, phases={"second": PHASES["second"]})
    swept = collect(recipe, GcOptions(older_than_s=0, old_plans=True), apply_it=False)
    assert not [one for one in swept.doomed if one.path.startswith("plans/")]
    swept = collect(other, GcOptions(older_than_s=0, old_plans=True), apply_it=False)
    assert {one.path.split("/")[1] for one in swept.doomed if one.path.startswith("plans/")} == {"first"}
    assert any(one.path.endswith("/mix.json") for one in swept.doomed)


def test_training_needs_its_own_phase_alone(planned: Path):
    changed = recipe_of(planned, phases={"second": PHASES["second"], "third": {"context": 99}})
    assert chain_of(changed, {"train"}).plan.phase == "second"
    with pytest.raises(IncompleteStageError, match="plan"):
        _ = chain_of(changed, set()).plans
    rows = [row for row in status_of(changed)["stages"] if row["stage"] == "plan"]
    assert [(row["what"], row["done"] == row["total"]) for row in rows] == [("second", True), ("third", False)]


def test_verify_finds_nothing_in_plans_with_a_mix_and_a_list(planned: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["verify", str(planned / "root"), "--deep"]) == 0
    assert "no record names it" not in capsys.readouterr().out
    assert len(list((planned / "root").glob("plans/*/*/excluded.parquet"))) == 2


def test_held_out_documents_are_drawn_with_the_epochs_that_shares_came_to(planned: Path):
    (path,) = (planned / "root").glob("plans/first/*")
    plan = open_plan(chain_of(recipe_of(planned)).store, f"plans/first/{path.name}")
    vocabulary = build_vocabulary(plan.description["vocabulary"])
    held_out, training = (draw_documents(plan, vocabulary, part, 500) for part in ("held_out", "training"))
    assert not {one.key for one in held_out} & {one.key for one in training}
    assert len(held_out) + len(training) == 60
    assert {one.weight for one in training} == {1.5}


def test_emu3_recipe_has_the_papers_phases_and_the_filters_of_its_parts():
    folder = Path(__file__).parents[1] / "pipelines" / "recipes"
    whole, images, video = (
        yaml.safe_load((folder / f"emu3{name}.yaml").read_text()) for name in ("", "-images", "-video")
    )
    for section in ("filter", "caption"):
        assert whole[section]["image"] == images[section]["image"]
        assert whole[section]["video"] == video[section]["video"]
    assert whole["tokenize"]["video"] == video["tokenize"]["video"]
    phases = check_recipe(whole, "emu3.yaml").plan.resolved()
    taken = {name: {s for s in whole["sources"] if one.of_source(s).is_taken} for name, one in phases.items()}
    assert {name: one.context for name, one in phases.items()} == {"first": 5120, "second": 131_072}
    assert taken == {"first": {"text", "pictures"}, "second": {"text", "pictures", "films"}}
    assert check_recipe(images, "images").plan.context == 5120


def test_going_on_is_said_of_the_trained_phase_or_of_one_by_name():
    said = PlanSettings(continue_from="main", phases={"a": {}, "b": {"continue_from": "other@5"}})
    assert {name: one.continue_from for name, one in said.resolved().items()} == {"a": None, "b": "other@5"}
