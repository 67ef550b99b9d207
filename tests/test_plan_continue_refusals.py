"""Where a plan goes on from, and what cannot be gone on from."""

from __future__ import annotations

import pytest
from tests.continued_plans import (
    SETTINGS,
    G,
    after,
    begun,
    some,
)

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.errors import RecipeError
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.pipelines.plan_continue import border_of
from tokenmill.settings_train import TrainSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(str(tmp_path_factory.mktemp("refusals") / "store"))


@pytest.fixture(scope="module")
def begun_plan(store: Store) -> tuple[Plan, list[Snapshot]]:
    return begun(store)


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"seed": 1}, "plan.seed"), ({"held_out": 0.1}, "plan.held_out"), ({"part": "held_out"}, "plan.part")],
)
def test_what_the_draws_hang_on_cannot_change_in_the_middle(changed, told, store, begun_plan):
    plan, everything = begun_plan
    with pytest.raises(RecipeError, match=told):
        write_plan(store, everything, SETTINGS.model_copy(update=changed), after(plan, 5))


def test_another_vocabulary_is_refused(store, begun_plan):
    plan, _ = begun_plan
    other = write_token_source(store, "others", byte_vocabulary(32), Amounts(images=3))
    with pytest.raises(RecipeError, match="another vocabulary"):
        write_plan(store, [other], SETTINGS, after(plan, 5))


def test_end_of_a_plan_with_nothing_new_is_refused(store, begun_plan):
    plan, everything = begun_plan
    end = -(-plan.num_packs // G)
    with pytest.raises(RecipeError, match="add data"):
        write_plan(store, [some(everything[0], 4), everything[1]], SETTINGS, after(plan, end))


def test_plan_and_step_are_found_by_folder_digits_and_url(store, begun_plan):
    plan, _ = begun_plan
    train = TrainSettings(global_packs_per_step=G, epochs=2)
    digits = plan.folder.path.rsplit("/", 1)[-1]
    for name in (
        plan.folder.path,
        digits,
        f"{store.url}/{plan.folder.path}",
        f"file://{store.url}/{plan.folder.path}/",
    ):
        border = border_of(store, f"{name}@7", "pretrain", train)
        assert (border.plan.plan_id, border.step, border.first_pack) == (plan.plan_id, 7, 7 * G)
    end = border_of(store, f"{digits}@end", "pretrain", train)
    assert end.first_pack == plan.num_packs
    second = border_of(store, f"{digits}@{end.step + 2}", "pretrain", train)
    assert second.first_pack == 2 * G, "the second time through the plan"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("{plan}@-1", "the step is a number"),
        ("{plan}@x", "the step is a number"),
        ("{plan}", "names no step"),
        ("{plan}@999", "has steps 0 to"),
        ("0123456789abcdef@3", "no stage folder"),
        ("plans/pretrain/nothing@3", "plans of pretrain: plans/pretrain/"),
        ("nobody", "runs: none"),
    ],
)
def test_what_names_no_step_of_a_plan_is_refused_with_what_is_there(asked, told, store, begun_plan):
    plan, _ = begun_plan
    with pytest.raises(RecipeError, match=told):
        border_of(store, asked.format(plan=plan.folder.path), "pretrain", TrainSettings(global_packs_per_step=G))
