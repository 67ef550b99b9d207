"""Phases: one run after the other, each from the weights before, whatever kills them in between."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.rank_server import RankServer

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.errors import RecipeError
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.recipe import Recipe
from tokenmill.settings_model import ModelSettings
from tokenmill.settings_train import PlanSettings, TrainSettings
from tokenmill.stage_training import train_model
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.first_weights import find_first_weights, take_weights
from tokenmill.train.job import TrainJob
from tokenmill.train.loader import PlanLoader
from tokenmill.train.model import Batch, build_model
from tokenmill.train.rows import read_rows

pytestmark = pytest.mark.slow

VOCABULARY = byte_vocabulary(32)
CONTEXT = 96
PHASES: dict[str, Any] = {
    "run": "whole", "device": "cpu", "steps": 4, "checkpoint_every": 2, "keep": 9, "global_packs_per_step": 2,
    "warmup_steps": 1, "lr": 0.01, "tensorboard": False, "threads_per_rank": 1,
    "model": {"hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 48, "dropout": 0.1, "tie_embeddings": True},
    "phases": {
        "first": {"ranks": 1},
        "second": {"lr": 0.002, "zero_stage": 3, "sequence_parallel": 2, "model": {"dropout": 0.0}},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """Plans of two phases, and a server of ranks that trains on them."""

    root: Path
    plans: dict[str, Plan]
    server: RankServer

    def train(self, phase: str, run: str, *, fault: str = "") -> list[int]:
        """Train a phase of the recipe, under `run` in place of its name; returns the ranks' exit codes."""
        settings = TrainSettings.model_validate(PHASES | {"run": run}).resolved()[phase]
        job = TrainJob(root=str(self.root), plan=self.plans[phase].folder.path, settings=settings)
        report = self.root.parent / f"report-{len(list(self.root.parent.iterdir()))}"
        self.server.start(job.model_dump_json(by_alias=True), report, settings.ranks, TOKENMILL_FAULT=fault)
        codes = list(self.server.ended())
        assert fault or codes == [0] * settings.ranks, (report / "log-00.txt").read_text()[-3000:]
        return codes

    def rows(self, run: str) -> list[dict[str, Any]]:
        return list(read_rows(self.root / "checkpoints" / run / "metrics.jsonl"))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("phases") / "store"
    store = open_store(str(root))
    images = write_token_source(store, "mixed", VOCABULARY, Amounts(images=60, texts=20, side=6, shards=1))
    clips = write_token_source(store, "clips", VOCABULARY, Amounts(clips=30, side=6, latent_frames=4, shards=1))
    first = PlanSettings(phase="first", context=CONTEXT, mix={"clips": 0.0})
    second = PlanSettings(phase="second", context=8 * CONTEXT)
    plans = {one.phase: write_plan(store, [images, clips], one) for one in (first, second)}
    with RankServer("tests.kept_ranks") as server:
        yield Bench(root, plans, server)


@pytest.fixture(scope="module")
def whole(bench: Bench) -> Bench:
    """Both phases of the run `whole`, trained without interruption."""
    bench.train("first", "whole")
    bench.train("second", "whole")
    return bench


def test_second_phase_begins_with_the_weights_of_the_first_and_a_schedule_of_its_own(whole: Bench) -> None:
    rows = whole.rows("whole-second")

    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["lr"] for row in rows] == pytest.approx([0.001, 0.002, 0.0015, 0.0005])
    assert rows[0]["loss"] == pytest.approx(loss_of_first_step(whole, "whole-first"), rel=1e-5)
    assert any(row["loss_vision"] for row in rows)
    told = json.loads((whole.root / "checkpoints/whole-second/start.json").read_text())
    assert told == {"start_from": "whole-first@4", "plan": whole.plans["first"].plan_id}


def test_export_of_each_phase_is_made_for_its_context(whole: Bench) -> None:
    configs = [json.loads((whole.root / f"checkpoints/whole-{name}/export/config.json").read_text())
               for name in ("first", "second")]  # fmt: skip

    assert [config["max_position_embeddings"] for config in configs] == [CONTEXT, 8 * CONTEXT]
    assert [config["attention_dropout"] for config in configs] == [0.1, 0.0]


def chain_of(whole: Bench) -> SimpleNamespace:
    return SimpleNamespace(plan_of=whole.plans.__getitem__, options=SimpleNamespace(quiet=True))


def test_phases_killed_and_resumed_have_every_loss_of_those_that_were_not(whole: Bench) -> None:
    killed = -signal.SIGKILL
    assert killed in whole.train("first", "broken", fault="checkpoint:between-files:2")
    whole.train("first", "broken")
    assert killed in whole.train("second", "broken", fault="checkpoint:before-record:2")
    assert RunFolder(open_store(str(whole.root)), "broken-second").steps() == [2]

    chain = chain_of(whole)
    row = train_model(recipe(whole, "broken"), chain)

    assert row["export"] == "checkpoints/broken-second/export"
    assert list(row["phases"]) == ["first", "second"]
    for phase in ("first", "second"):
        found, expected = (exact(whole.rows(f"{run}-{phase}")) for run in ("broken", "whole"))
        assert found == expected


def test_phases_that_are_finished_start_no_rank(whole: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "no such program")

    row = train_model(recipe(whole, "whole"), chain_of(whole))

    assert [one["step"] for one in row["phases"].values()] == [4, 4]


@pytest.mark.parametrize(
    ("named", "told"),
    [("nobody", "run nobody has no such checkpoint; it has none"), ("whole-first@3", "it has steps 2, 4")],
)
def test_start_from_a_checkpoint_that_is_not_there_names_those_that_are(whole: Bench, named: str, told: str) -> None:
    folder = RunFolder(open_store(str(whole.root)), "new")

    with pytest.raises(RecipeError, match=told):
        find_first_weights(folder, TrainSettings(start_from=named), VOCABULARY)


def test_start_from_a_run_of_another_vocabulary_names_both(whole: Bench) -> None:
    folder = RunFolder(open_store(str(whole.root)), "new")

    with pytest.raises(
        RecipeError, match=r"{codebook_size: 32, .*} of 298 ids, the plan's is {codebook_size: 33, .*} of 299"
    ):
        find_first_weights(folder, TrainSettings(start_from="whole-first"), byte_vocabulary(33))


def test_start_from_a_run_of_another_shape_names_both(whole: Bench) -> None:
    folder = RunFolder(open_store(str(whole.root)), "new")
    settings = TrainSettings.model_validate({"start_from": "whole-first", "model": {"layers": 3}})
    first = find_first_weights(folder, settings, VOCABULARY)
    assert first is not None
    model = build_model(settings.model, VOCABULARY, CONTEXT, like=first.checkpoint.model)

    with pytest.raises(RecipeError, match=r"hidden_size 32 ≠ 192.*num_hidden_layers 2 ≠ 3"):
        take_weights(first, model, folder)


def test_run_that_was_begun_from_another_given_model_is_refused(whole: Bench) -> None:
    folder = RunFolder(open_store(str(whole.root)), "whole-first")
    settings = TrainSettings.model_validate({"run": "whole-first", "model": {"from": "somewhere"}})

    with pytest.raises(RecipeError, match="is 'somewhere', and run whole-first was begun with None"):
        find_first_weights(folder, settings, VOCABULARY)


def exact(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """What of the metrics hangs on no clock."""
    return [
        tuple(row[name] for name in ("step", "loss", "loss_text", "loss_vision", "grad_norm", "lr")) for row in rows
    ]


def recipe(bench: Bench, run: str) -> Recipe:
    """The recipe of the phases, as far as training looks at it."""
    plan = {"phases": {name: {} for name in bench.plans}}
    sources = {"mixed": {"kind": "files", "url": "unused"}}
    train = PHASES | {"run": run}
    return Recipe.model_validate({"root": str(bench.root), "sources": sources, "plan": plan, "train": train})


def loss_of_first_step(bench: Bench, run: str) -> float:
    """The loss that a run's exported model has on the first step of the second phase."""
    settings = ModelSettings.model_validate(
        {"from": str(bench.root / "checkpoints" / run / "export"), "context": 8 * CONTEXT, "dropout": 0.0}
    )
    model = build_model(settings, VOCABULARY, 8 * CONTEXT)
    model.eval()
    step = PlanLoader(bench.plans["second"], VOCABULARY, global_packs=2).step(0)
    with torch.no_grad():
        return float(sum(model(Batch.of(arrays, "cpu"))[0] for arrays in step.micro_batches)) / step.weight
