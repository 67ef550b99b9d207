"""Going on with new data from the command line, and what housekeeping and takedowns know of plans in a chain."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests import tiny

from tokenmill.cli import main
from tokenmill.manifests.plan_border import Border
from tokenmill.manifests.plans import Plan, open_plan, plan_paths
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.takedown_plans import states_of_runs
from tokenmill.recipe import load_recipe

G = 2
CHANGES: Mapping[str, Any] = {
    "plan.held_out": 0.0, "plan.context": 128, "plan.window_documents": 8, "plan.window_packs": 1,
    "train.global_packs_per_step": G, "sources.text.range_bytes": 4000,
}  # fmt: skip


@dataclass(frozen=True)
class Root:
    """A folder with data, a recipe and its root, in which a run stands at step 3 of a plan."""

    folder: Path

    @property
    def recipe(self) -> str:
        return str(self.folder / "recipe.yaml")

    @property
    def store(self) -> Store:
        return open_store(str(self.folder / "root"))

    def plan(self, *overrides: str) -> Plan:
        recipe = load_recipe(self.recipe, list(overrides))
        return Chain(recipe=recipe, options=ChainOptions(quiet=True, work=frozenset())).plan

    def first_plan(self) -> Plan:
        """The plan that continues none."""
        plans = [open_plan(self.store, path) for path in plan_paths(self.store, "pretrain")]
        return next(plan for plan in plans if "continues" not in plan.description)

    def stand_at(self, plan: Plan, step: int) -> None:
        """Leave what a run leaves that was trained up to a step of a plan."""
        done = Border(plan=plan, step=step, global_packs=G)
        state = {key: done.to_json()[key] for key in ("phase", "epoch", "next_pack", "global_packs")}
        record = {"schema": 1, "loader": {"plan_id": plan.plan_id, **state}, "files": []}
        self.store.put(f"checkpoints/main/step-{step:08d}/checkpoint.json", json.dumps(record).encode())

    def write_texts(self, name: str, first: int, last: int) -> None:
        lines = [
            json.dumps({"id": f"doc-{n:03d}", "text": f"Text {n}: " + f"words of {n} " * 7}) for n in range(first, last)
        ]
        (self.folder / "data/text" / name).write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Root:
    root = Root(tmp_path_factory.mktemp("continue"))
    (root.folder / "data/text").mkdir(parents=True)
    root.write_texts("a.jsonl", 0, 30)
    write_recipe(root)
    assert main(["run", root.recipe, "--until", "plan"]) == 0
    root.stand_at(root.plan(), 3)
    root.write_texts("b.jsonl", 30, 50)
    return root


def write_recipe(root: Root) -> None:
    tiny.write_recipe(Path(root.recipe), root.folder / "data", str(root.folder / "root"), CHANGES, sources=("text",))


@pytest.fixture
def root(prepared: Root, tmp_path: Path) -> Root:
    shutil.copytree(prepared.folder, tmp_path / "copy")
    copy = Root(tmp_path / "copy")
    write_recipe(copy)
    return copy


def run(root: Root, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["run", root.recipe, "--until", "plan", "--json", *arguments]) == 0
    row: dict[str, Any] = json.loads(capsys.readouterr().out)["stages"][-1]
    return row


def test_run_is_continued_with_new_data_and_named_again_it_stays_on_that_plan(root, capsys):
    before = root.first_plan()
    row = run(root, capsys, "--continue-from", "main")

    assert row["continues"]["plan"] == before.plan_id and row["continues"]["step"] == 3
    assert (row["continues"]["new_documents"], row["continues"]["gone_documents"]) == (20, 0)
    assert row["continues"]["carried_documents"] >= 30 - 3 * G * 3
    again = run(root, capsys, f"plan.continue_from={before.folder.path}@3")
    assert again["plan"] == row["plan"]

    plan = root.plan(f"plan.continue_from={before.folder.path}@3")
    root.stand_at(plan, 5)
    assert run(root, capsys, "--continue-from", "main")["plan"] == row["plan"], "nothing new: the run goes on"
    root.write_texts("c.jsonl", 50, 60)
    third = run(root, capsys, "--continue-from", "main")
    assert (third["continues"]["plan"], third["continues"]["step"]) == (plan.plan_id, 5)
    assert main(["verify", str(root.folder / "root"), "--deep"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(root.folder / "root" / plan.folder.path)]) == 0
    assert "carried_documents" in capsys.readouterr().out


def test_plan_tells_in_one_line_what_it_goes_on_from_and_refuses_another_step_size(root, capsys):
    assert main(["run", root.recipe, "--until", "tokenize"]) == 0
    capsys.readouterr()
    assert main(["plan", root.recipe, "--continue-from", "main"]) == 0
    assert "documents carried over, 20 new, 0 gone" in capsys.readouterr().out

    arguments = ["plan", root.recipe, "--continue-from", "main", "train.global_packs_per_step=4"]
    assert main(arguments) == 2
    assert "set it to 2" in capsys.readouterr().err


def test_gc_keeps_the_plans_that_a_plan_goes_back_to_and_the_indexes_they_name(root, capsys):
    before = root.first_plan()
    row = run(root, capsys, "--continue-from", f"{before.folder.path}@3")
    override = f"plan.continue_from={before.folder.path}@3"
    root.stand_at(root.plan(override), 5)
    root.store.delete("checkpoints/main/step-00000003/checkpoint.json")

    assert main(["gc", root.recipe, override, "--apply", "--older-than", "0", "--old-plans", "--old-settings"]) == 0

    assert open_plan(root.store, before.folder.path).plan_id == before.plan_id
    assert all(root.store.exists(index) for index in before.shards["index"])
    assert root.plan(override).plan_id == row["plan"]
    assert main(["verify", str(root.folder / "root"), "--deep"]) == 0


def test_takedown_tells_what_a_run_consumed_before_it_was_continued_and_rewriting_leaves_the_new_plan(root, capsys):
    before = root.first_plan()
    consumed = [placed for pack in range(3 * G) for placed in before.documents(pack)]
    shard, _ = Counter(placed.shard for placed in consumed).most_common(1)[0]
    seen = {placed.sample for placed in consumed if placed.shard == shard}
    index = pl.read_parquet(root.folder / "root" / before.index_of[shard])
    taken = index["key"][min(seen)]
    (root.folder / "asked.txt").write_text(f"{taken}\n")
    row = run(root, capsys, "--continue-from", "main")
    override = f"plan.continue_from={before.folder.path}@3"
    root.stand_at(root.plan(override), 5)
    root.store.delete("checkpoints/main/step-00000003/checkpoint.json")

    capsys.readouterr()
    assert main(["takedown", root.recipe, "--keys", str(root.folder / "asked.txt"), "--json"]) == 0
    plans = {plan["plan"]: plan for plan in json.loads(capsys.readouterr().out)["plans"]}
    (told,) = plans[before.folder.path]["runs"]
    assert told["run"] == "main" and told["steps_done"] == 3 and told["steps"]
    assert {state["plan_id"] for state in states_of_runs(root.store)} == {before.plan_id, row["plan"]}

    after = run(root, capsys, "--continue-from", "main")
    assert after["continues"]["step"] == 5 and after["dropped"]["seen"] == len(seen) - 1 > 0
    assert main(["takedown", root.recipe, "--keys", str(root.folder / "asked.txt"), "--rewrite"]) == 0
    assert plan_paths(root.store, "pretrain") == [f"plans/pretrain/{after['plan'][:16]}"], "the others read the sample"


def test_continued_plan_is_trained_on_though_the_plan_before_is_gone(root, capsys):
    before = root.first_plan()
    asked = f"{before.folder.path}@3"
    row = run(root, capsys, "--continue-from", asked)
    shutil.rmtree(root.folder / "root" / before.folder.path)

    assert run(root, capsys, "--continue-from", asked)["plan"] == row["plan"]
    assert main(["verify", str(root.folder / "root"), "--deep"]) == 0
    assert "was not compared with the plan it continues" in capsys.readouterr().out
    root.stand_at(root.plan(f"plan.continue_from={asked}"), 5)
    assert run(root, capsys, "--continue-from", "main")["plan"] == row["plan"], "where the run stands, all is there"
    assert main(["plan", root.recipe, "--continue-from", f"{before.folder.path}@4"]) == 2
    root.write_texts("c.jsonl", 50, 60)
    assert main(["run", root.recipe, "--until", "plan", "--continue-from", asked]) == 2
