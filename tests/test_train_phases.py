"""Phases: one run after the other, each from the weights before, whatever kills them in between."""

from __future__ import annotations

import json
import re
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

from tokenmill.cli import main
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
from tokenmill.train.first_weights import find_first_weights, shape_to_take, take_weights
from tokenmill.train.job import TrainJob
from tokenmill.train.loader import PlanLoader
from tokenmill.train.model import Batch, build_model
from tokenmill.train.rows import read_rows
from tokenmill.train.saving import architecture_differences

pytestmark = pytest.mark.slow

VOCABULARY = byte_vocabulary(32)
CONTEXT = 96
PHASES: dict[str, Any] = {
    "run": "whole", "device": "cpu", "steps": 4, "checkpoint_every": 2, "keep": 9, "global_packs_per_step": 2,
    "warmup_steps": 1, "lr": 0.01, "tensorboard": False, "threads_per_rank": 1,
    "model": {"hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 48, "dropout": 0.1, "tie_embeddings": True},
    "phases": {
        "first": {},
        "second": {"lr": 0.002, "zero_stage": 3, "sequence_parallel": 2, "model": {"dropout": 0.0}},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """Plans of two phases, and a server of ranks that trains on them."""

    root: Path
    plans: dict[str, Plan]
    server: RankServer

    def train(self, run: str, *phases: str, fault: str = "") -> list[int]:
        """Train phases of the recipe one after the other in one launch of two ranks; returns their exit codes."""
        settings = TrainSettings.model_validate(PHASES | {"run": run}).resolved()
        return self.launch([(settings[phase], phase) for phase in phases], fault=fault)

    def launch(self, runs: Sequence[tuple[Any, str]], *, fault: str = "") -> list[int]:
        """Train runs, each on the plan of a phase, in one launch of two ranks; returns their exit codes."""
        jobs = [
            TrainJob(root=str(self.root), plan=self.plans[phase].folder.path, settings=settings)
            for settings, phase in runs
        ]
        report = self.root.parent / f"report-{len(list(self.root.parent.iterdir()))}"
        text = json.dumps([job.model_dump(mode="json", by_alias=True) for job in jobs])
        self.server.start(text, report, 2, TOKENMILL_FAULT=fault)
        codes = list(self.server.ended())
        assert fault or codes == [0, 0], (report / "log-00.txt").read_text()[-3000:]
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
    bench.train("whole", "first", "second")
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


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_weights_are_carried_in_fp32_into_a_run_of_bf16(whole: Bench, zero_stage: int) -> None:
    run = f"half-{zero_stage}"
    said = {name: value for name, value in PHASES.items() if name not in ("phases", "model")}
    own = {"run": run, "phase": "first", "start_from": "whole-first", "precision": "bf16", "zero_stage": zero_stage,
           "steps": 1, "lr": 1e-12}  # fmt: skip
    whole.launch([(TrainSettings.model_validate(said | own), "first")])

    before, after = (weights_of(whole, name) for name in ("whole-first", run))

    assert before.keys() == after.keys()
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-9
    assert any((before[name] - before[name].bfloat16().float()).abs().max() > 1e-6 for name in before)


def weights_of(whole: Bench, run: str) -> dict[str, torch.Tensor]:
    folder = RunFolder(open_store(str(whole.root)), run)
    checkpoint = folder.read(folder.steps()[-1])
    with folder.tensors(checkpoint) as tensors:
        return {name: tensors.read(name) for name in checkpoint.tensors if name.endswith("/weight")}


def chain_of(whole: Bench) -> SimpleNamespace:
    """The plans of the phases, as a chain of stages gives them."""
    return SimpleNamespace(plan_of=whole.plans.__getitem__, options=SimpleNamespace(quiet=True))


def test_phases_killed_and_resumed_have_every_loss_of_those_that_were_not(whole: Bench) -> None:
    killed = -signal.SIGKILL
    assert killed in whole.train("broken", "first", fault="checkpoint:between-files:2")
    assert killed in whole.train("broken", "first", "second", fault="checkpoint:before-record:3")
    assert RunFolder(open_store(str(whole.root)), "broken-second").steps() == [2]

    row = train_model(recipe(whole, "broken"), chain_of(whole))

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


def test_start_from_without_sizes_takes_the_shape_of_the_other_run(whole: Bench) -> None:
    folder = RunFolder(open_store(str(whole.root)), "new")
    settings = TrainSettings.model_validate(
        {"start_from": "whole-first@2", "model": {"dropout": 0.2, "rope_base": 5e6}}
    )
    first = find_first_weights(folder, settings, VOCABULARY)
    assert first is not None and (first.name, first.is_other) == ("whole-first@2", True)

    model = build_model(settings.model, VOCABULARY, 500, like=shape_to_take(first, settings))

    config = model.causal.config
    assert architecture_differences(first.checkpoint.model, config.to_dict()) == []
    assert (config.max_position_embeddings, config.rope_parameters["rope_theta"]) == (500, 5e6)
    assert (model.dropout, config.attention_dropout) == (0.2, 0.2)
    assert model.causal.lm_head.weight is model.causal.model.embed_tokens.weight


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


def test_phases_of_a_recipe_are_runs_of_their_own_from_the_weights_before() -> None:
    settings = TrainSettings.model_validate(
        {"run": "r", "lr": 1e-4, "start_from": "base", "model": {"preset": "100m", "dropout": 0.1},
         "phases": {"a": {}, "b": {"lr": 1e-5, "model": {"dropout": 0.0}}, "c": {"start_from": "r-a@7", "run": "last"}}}
    )  # fmt: skip

    found = settings.resolved()

    assert [(name, one.phase, one.run) for name, one in found.items()] == [
        ("a", "a", "r-a"), ("b", "b", "r-b"), ("c", "c", "last")]  # fmt: skip
    assert [one.start_from for one in found.values()] == ["base", "r-a", "r-a@7"]
    assert [one.lr for one in found.values()] == [1e-4, 1e-5, 1e-4]
    assert [(one.model.sizes.hidden, one.model.sizes.dropout) for one in found.values()] == [
        (768, 0.1), (768, 0.0), (768, 0.1)]  # fmt: skip
    assert settings.last == found["c"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"phases": {"a": {"run": "x"}, "b": {"run": "x", "start_from": None}}}, "phases: two of them have one run"),
        ({"precision": "bf16", "phases": {"a": {"zero_stage": 0}}}, "phases.a: precision bf16 needs zero_stage"),
        ({"phase": "x", "phases": {"a": {}}}, "phase: is 'x', but phases names a"),
        ({"run": "m", "start_from": "m@3"}, "start_from: m@3 is the run itself"),
        ({"phases": {"a": {"lrr": 1}}}, "phases.a.lrr"),
    ],
)
def test_phases_that_do_not_go_together_are_refused_by_key(said: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        TrainSettings.model_validate(said)


def test_estimate_of_phases_is_one_for_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"root: {tmp_path / 'root'}\nsources: {{a: {{kind: images, url: {tmp_path / 'none'}}}}}\n"
        "plan: {phases: {a: {context: 512}, b: {context: 4096}}}\n"
        "train: {steps: 10, phases: {a: {}, b: {zero_stage: 3}}}\n"
    )

    assert main(["train", str(path), "--estimate", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["phases"]
    assert [one["tokens"] for one in found.values()] == [10 * 16 * 512, 10 * 16 * 4096]
    assert main(["train", str(path), "--estimate"]) == 0
    assert "phase b:" in capsys.readouterr().out
    assert main(["train", str(path), "--estimate", "train.start_from=other"]) == 2
    assert "train.model: is left to train.start_from, other" in capsys.readouterr().err
