"""Evaluation on held-out packs: the same on any number of ranks, and training never notices it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny
from tests.evaluating_rank import MODEL, PACKS

from tokenmill.cli import main
from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.errors import RecipeError
from tokenmill.manifests.plans import Plan, open_plan
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.recipe import check_recipe
from tokenmill.settings_evaluation import EvaluationSettings
from tokenmill.settings_train import LoaderSettings, ModelSettings, PlanSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.evaluation import Evaluation
from tokenmill.train.job import TrainJob, TrainResult
from tokenmill.train.loader import PlanLoader
from tokenmill.train.step_documents import TEMPLATE_NAMES

VOCABULARY = byte_vocabulary(33)


def plans_in(store: Store) -> tuple[Plan, Plan]:
    """A plan to train on, and one of what it holds out."""
    sources = [write_token_source(store, "mixed", VOCABULARY, Amounts(images=60, texts=60, shards=2))]
    whole = PlanSettings(context=128, held_out=0.3)
    held_out = whole.model_copy(update={"phase": "held", "part": "held_out"})
    training, evaluated = (write_plan(store, sources, one) for one in (whole, held_out))
    assert evaluated.num_packs > PACKS
    return training, evaluated


@pytest.mark.slow
def test_evaluation_while_training_is_that_of_the_model_and_leaves_training_alone(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    training, held_out = plans_in(store)
    ranks = [_start(rank, 2, tmp_path, training.folder.path, held_out.folder.path) for rank in range(2)]
    outputs = [rank.communicate()[0].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs[0][-3000:]
    rows = json.loads((tmp_path / "rows.json").read_text())

    still = rows["still-0"]["evaluation"]
    assert still == rows["still-3"]["evaluation"]
    assert [row["step"] for row in still] == [2]
    alone = evaluated_by(1, store, training, held_out)
    assert still[0].keys() == alone.keys()
    for name in ("loss", "loss_text", "loss_vision", "loss_by_template", "weight"):
        assert still[0][name] == pytest.approx(alone[name], rel=1e-6), name
        assert rows["still-shared"]["evaluation"][0][name] == pytest.approx(alone[name], rel=1e-5), name
    assert [row["step"] for row in rows["learns"]["evaluation"]] == [2, 4, 5]
    assert rows["unevaluated"]["evaluation"] == []
    for name in ("loss", "loss_text", "loss_vision", "loss_by_template", "z_loss", "grad_norm"):
        assert [r[name] for r in rows["learns"]["metrics"]] == [r[name] for r in rows["unevaluated"]["metrics"]], name
    check_templates(training, rows["learns"]["metrics"])


def test_evaluation_by_any_number_of_ranks_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    plans = plans_in(store)

    alone = evaluated_by(1, store, *plans)

    assert alone == evaluated_by(2, store, *plans) == evaluated_by(3, store, *plans) == evaluated_by(7, store, *plans)
    assert alone["packs"] == PACKS
    assert alone["unreadable"] == 0
    assert alone["weight"] == pytest.approx(plans[1].costs(0, PACKS).weight.sum())


def test_evaluation_counts_what_cannot_be_read_and_goes_on_without(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    training, held_out = plans_in(store)
    whole = evaluated_by(2, store, training, held_out)
    lost = held_out.documents(1)[0].shard
    (tmp_path / lost).unlink()

    found = evaluated_by(2, store, training, held_out)

    assert found["unreadable"] == sum(d.shard == lost for pack in range(PACKS) for d in held_out.documents(pack))
    assert 0 < found["weight"] < whole["weight"]
    assert np.isfinite(found["loss"])


def evaluated_by(world: int, store: Store, training: Plan, held_out: Plan) -> dict[str, Any]:
    """The row of an evaluation of fresh weights, one rank after the other in this process."""
    from tokenmill.train.model import build_model

    model = build_model(ModelSettings(**MODEL), VOCABULARY, training.context)
    asked = EvaluationSettings(phase="held", packs=PACKS)
    told: list[Any] = []
    rows = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokenmill.train.evaluation.summed_over_ranks", lambda values, _: told.append(values) or values)
        for again in (False, True):
            if again:
                patch.setattr("tokenmill.train.evaluation.summed_over_ranks", lambda *_: sum(told))
            for rank in range(world):
                loader = PlanLoader(training, VOCABULARY, global_packs=world, rank=rank, world=world)
                evaluation = Evaluation.of(store, held_out.folder.path, asked, loader, LoaderSettings())
                rows.append(evaluation.row(model, torch.device("cpu"), 2))
    assert model.training
    assert all(row == rows[-1] for row in rows[world:])
    return rows[-1]


def check_templates(plan: Plan, rows: list[dict[str, Any]]) -> None:
    """Losses of templates, by what they weigh, are the loss."""
    loader = PlanLoader(plan, VOCABULARY, global_packs=3)
    seen = set()
    for number, row in enumerate(rows):
        step = loader.step(number)
        weight = dict(zip(TEMPLATE_NAMES, step.documents.weight, strict=True))
        assert row["loss_by_template"].keys() == {name for name, one in weight.items() if one}
        assert sum(loss * weight[name] for name, loss in row["loss_by_template"].items()) == pytest.approx(
            row["loss"] * step.weight, rel=1e-5
        )
        assert 0 < row["z_loss"] < 1e-3 * (2 * np.log(VOCABULARY.size)) ** 2
        seen |= row["loss_by_template"].keys()
    assert {"generation", "language"} <= seen


def test_held_out_plan_that_could_hold_what_is_trained_on_is_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    sources = [write_token_source(store, "mixed", VOCABULARY, Amounts(texts=40))]
    loader = PlanLoader(write_plan(store, sources, PlanSettings(context=128, held_out=0.2)), VOCABULARY, global_packs=2)

    def opened(**settings: Any) -> Evaluation:
        plan = write_plan(
            store, sources, PlanSettings(**{"phase": "held", "part": "held_out", "context": 128, **settings})
        )
        asked = EvaluationSettings(phase="held", packs=None)
        return Evaluation.of(store, plan.folder.path, asked, loader, LoaderSettings())

    with pytest.raises(RecipeError, match=r"plans/held/\w+ is of part training"):
        opened(held_out=0.2, part="training")
    with pytest.raises(RecipeError, match=r"holds out 0.5 of the samples, plans/pretrain/\w+ only 0.2"):
        opened(held_out=0.5)
    with pytest.raises(RecipeError, match="has packs of 256 ids"):
        opened(held_out=0.2, context=256)
    good = opened(held_out=0.1)
    assert good.packs == good.loader.plan.num_packs
    assert [done for done in range(1, 1201) if good.is_due(done, 1200)] == [500, 1000, 1200]


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ({"held_out": 0.1, "phase": "pretrain"}, "no phase 'held' in plan.phases; known: pretrain"),
        ({"held_out": 0.1, "phases": {"pretrain": {}, "held": {}}}, "held is of part training and holds out 0.1"),
        ({"phases": {"pretrain": {}, "held": {"part": "held_out"}}}, "holds out 0; it needs part: held_out"),
        (
            {"phases": {"pretrain": {"held_out": 0.1}, "held": {"part": "held_out", "held_out": 0.2}}},
            "pretrain only 0.1",
        ),
        ({"held_out": 0.1, "phases": {"pretrain": {}, "held": {"part": "held_out"}}}, None),
        ({"held_out": 0.1, "phases": {"pretrain": {}, "held": {"part": "held_out", "context": 2048}}}, "of 2048 ids"),
    ],
)
def test_recipe_names_the_phase_it_cannot_evaluate_on(plan: dict[str, Any], told: str | None) -> None:
    recipe = {
        "root": "root",
        "sources": {"text": {"kind": "jsonl", "url": "text"}},
        "plan": plan,
        "train": {"evaluation": {"phase": "held", "every": 10}},
    }
    if told is None:
        assert check_recipe(recipe, "recipe.yaml").train.evaluation == EvaluationSettings(phase="held", every=10)
        return
    with pytest.raises(RecipeError, match=told):
        check_recipe(recipe, "recipe.yaml")


def test_recipe_with_phases_checks_the_evaluation_of_each() -> None:
    recipe: dict[str, Any] = {
        "root": "root",
        "sources": {"text": {"kind": "jsonl", "url": "text"}},
        "plan": {
            "held_out": 0.1,
            "phases": {
                "one": {"context": 512},
                "two": {"held_out": 0.05},
                "held": {"part": "held_out", "context": 512},
            },
        },
        "train": {"phases": {"one": {}, "two": {}}, "evaluation": {"phase": "held"}},
    }
    with pytest.raises(RecipeError, match=r"two only 0\.05: it would be evaluated on what is trained on"):
        check_recipe(recipe, "recipe.yaml")

    recipe["train"]["phases"]["two"] = {"evaluation": None}
    found = check_recipe(recipe, "recipe.yaml").train.resolved()
    assert [one.evaluation is not None for one in found.values()] == [True, False]


def test_recipe_hands_the_held_out_phase_to_the_trainer_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[TrainJob] = []

    def launch(job: TrainJob, on_row: Any) -> TrainResult:
        jobs.append(job)
        return TrainResult(step=1, total_steps=1, stopped=False, export=None)

    monkeypatch.setattr("tokenmill.train.launch.launch", launch)
    (tmp_path / "data/text").mkdir(parents=True)
    texts = [json.dumps({"id": f"doc-{n:03d}", "text": f"Text {n}: " + f"words of {n} " * 7}) for n in range(40)]
    (tmp_path / "data/text/a.jsonl").write_text("\n".join(texts) + "\n")
    changes = {
        "plan.held_out": 0.2, "plan.context": 128, "plan.phases": {"pretrain": {}, "held": {"part": "held_out"}},
        "train.evaluation": {"phase": "held", "packs": 2},
    }  # fmt: skip
    recipe = tiny.write_recipe(
        tmp_path / "r.yaml", tmp_path / "data", str(tmp_path / "root"), changes, sources=("text",)
    )

    assert main(["run", str(recipe), "--until", "train"]) == 0
    assert main(["train", str(recipe)]) == 0

    assert jobs[0] == jobs[1]
    store = open_store(jobs[0].root)
    plans = [open_plan(store, str(path)) for path in (jobs[0].plan, jobs[0].evaluation_plan)]
    assert [plan.description["part"] for plan in plans] == ["training", "held_out"]


def _start(rank: int, world: int, folder: Path, *plans: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1",
        "TOKENMILL_RENDEZVOUS": f"file://{folder / 'rendezvous'}",
    }  # fmt: skip
    command = [sys.executable, str(Path(__file__).with_name("evaluating_rank.py")), str(folder), *plans]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
