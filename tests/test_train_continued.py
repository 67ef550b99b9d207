"""A real run that goes on with a plan that continues its own: steps, rate and samples go on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.errors import RecipeError
from tokenmill.manifests.plan_border import Border
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_train import PlanSettings, TrainSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.continuing import check_begun
from tokenmill.train.job import TrainJob
from tokenmill.train.launch import launch
from tokenmill.train.loader import PlanLoader
from tokenmill.train.rows import read_rows
from tokenmill.train.schedule import learning_rate, total_steps

VOCABULARY = byte_vocabulary(32)
SETTINGS: Mapping[str, Any] = {
    "device": "cpu", "ranks": 1, "steps": 2, "checkpoint_every": 1, "keep": 9, "global_packs_per_step": 4,
    "log_samples": True, "warmup_steps": 2, "schedule": "linear", "tensorboard": False,
    "model": {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 2, "ffn": 16},
}  # fmt: skip


def planned(root: Path) -> tuple[Plan, Plan]:
    """A plan over half of a source, and one over all of it that goes on from step 2 of the first."""
    store = open_store(str(root))
    whole = write_token_source(store, "mixed", VOCABULARY, Amounts(images=60, texts=60, shards=2))
    settings = PlanSettings(context=160)
    first = write_plan(store, [Snapshot(folder=whole.folder, commits=tuple(whole.commits[:1]))], settings)
    return first, write_plan(store, [whole], settings, Border(plan=first, step=2, global_packs=4))


def job(root: Path, plan: Plan, **changes: Any) -> TrainJob:
    settings = TrainSettings.model_validate({**SETTINGS, **changes})
    return TrainJob(root=str(root), plan=plan.folder.path, settings=settings)


@pytest.mark.slow
def test_run_goes_on_with_the_plan_that_continues_its_own(tmp_path: Path) -> None:
    first, second = planned(tmp_path)
    launch(job(tmp_path, first))
    result = launch(job(tmp_path, second, steps=4))

    assert (result.step, result.total_steps) == (4, 4)
    rows = list(read_rows(tmp_path / "checkpoints/main/metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    settings = TrainSettings.model_validate({**SETTINGS, "steps": 4})
    assert [row["lr"] for row in rows[2:]] == pytest.approx([learning_rate(n, 4, settings) for n in (2, 3)])
    read = [row["samples"] for row in read_rows(tmp_path / "checkpoints/main/samples.jsonl")]
    for number, plan, own in ((0, first, 0), (1, first, 1), (2, second, 0), (3, second, 1)):
        loader = PlanLoader(plan, VOCABULARY, global_packs=4)
        expected = [(sample.pack, sample.slot, sample.key) for sample in loader.step(own).samples]
        assert [(one["pack"], one["slot"], one["key"]) for one in read[number]] == sorted(expected)
    folder = RunFolder(open_store(str(tmp_path)), "main")
    assert folder.steps() == [1, 2, 3, 4]
    assert folder.read(4).loader == PlanLoader(second, VOCABULARY, global_packs=4).state(2).to_json()
    again = launch(job(tmp_path, second, steps=4))
    assert again == result, "finished: starts no rank"


def test_state_of_the_plan_before_is_taken_at_its_step_alone(tmp_path: Path) -> None:
    first, second = planned(tmp_path)
    before, loader = (PlanLoader(plan, VOCABULARY, global_packs=4) for plan in (first, second))

    for step in range(2 * before.steps_per_epoch + 2):
        told = Border(plan=first, step=step, global_packs=4).to_json()
        state = before.state(step).to_json()
        assert {name: told[name] for name in ("epoch", "next_pack", "phase")} == {
            name: state[name] for name in ("epoch", "next_pack", "phase")
        }
    assert loader.step_of(before.state(2).to_json()) == 0
    assert loader.step_of(loader.state(3).to_json()) == 3
    for step in (1, 3, before.steps_per_epoch + 2):
        with pytest.raises(RecipeError, match=f"goes on from step 2 of {first.folder.path}"):
            loader.step_of(before.state(step).to_json())
    with pytest.raises(RecipeError, match="global_packs 5 ≠ 4"):
        loader.step_of(before.state(2).to_json() | {"global_packs": 5})
    with pytest.raises(RecipeError, match="is of another plan"):
        before.step_of(loader.state(2).to_json())
    with pytest.raises(RecipeError, match="run other has no checkpoint"):
        check_begun(second, "other")
    check_begun(first, "other")


def test_total_steps_count_those_of_the_plans_before() -> None:
    settings = TrainSettings(global_packs_per_step=4)

    assert total_steps(settings, 20, 7) == 7 + 5
    assert total_steps(settings.model_copy(update={"steps": 9}), 20, 7) == 9
