"""Plans that go on from another in its middle: every id once over both, whatever the context and weights."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.continued_plans import (
    SETTINGS,
    VOCABULARY,
    G,
    after,
    begun,
    check_every_id_once,
    consumed,
    dropped,
    is_sound,
    mixed,
    pictures,
    pieces,
    some,
    words,
)

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.manifests.plan_border import Border, border_before
from tokenmill.manifests.plan_pieces import continued_faults
from tokenmill.manifests.plans import Plan, open_plan
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.storage import Store, open_store
from tokenmill.manifests.verify import verify
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_train import PlanSettings


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.mark.parametrize("step", [0, 7, "end", "second time"])
def test_continued_plan_and_what_was_consumed_hold_every_id_once(step, store):
    plan, everything = begun(store)
    end = -(-plan.num_packs // G)
    border = after(plan, {"end": end, "second time": end + 3}.get(step, step))
    assert len(plan.windows) > 2

    new = write_plan(store, everything, SETTINGS, border)

    check_every_id_once(pieces(new, range(new.num_packs), consumed(border)), everything)
    assert is_sound(new)
    cut = [one for rows in consumed(border).values() for one in rows if rows[0][2] == "language"]
    assert bool(cut) == (step != 0)
    about = new.description["continues"]
    assert about["new_documents"] == 20
    assert about["carried_documents"] + 20 == new.description["totals"]["documents"]


def cut_inside(border: Border) -> set[tuple[str, str, int]]:
    """The texts whose first pieces were consumed, and others not."""
    found = pieces(border.plan, range(border.first_pack, border.plan.num_packs))
    return {name for name in set(consumed(border)) & set(found) if min(piece[0] for piece in found[name]) > 0}


def test_continued_plan_goes_on_inside_of_a_text_that_the_border_cuts(store):
    plan, everything = begun(store)
    border = next(border for border in (after(plan, step) for step in range(1, 20)) if cut_inside(border))
    new = write_plan(store, everything, SETTINGS, border)

    found = pieces(new, range(new.num_packs))
    assert all(min(piece[0] for piece in found[name]) > 0 for name in cut_inside(border))
    check_every_id_once(pieces(new, range(new.num_packs), consumed(border)), everything)


def test_continued_plan_mixes_new_data_in_evenly(store):
    everything = [write_token_source(store, "pictures", VOCABULARY, Amounts(images=480, shards=12))]
    settings = PlanSettings(context=300, window_documents=40)
    plan = write_plan(store, [some(everything[0], 9)], settings)
    before = set(plan.shards["shard"])

    new = write_plan(store, everything, settings, after(plan, 2))

    assert len(new.windows) > 5
    shares = []
    for first, count in new.windows.select("first_pack", "num_packs").iter_rows():
        rows = [d.shard in before for p in range(first, first + count) for d in new.documents(p)]
        shares.append(1 - sum(rows) / len(rows))
    assert min(shares) > 0.05 and max(shares) < 0.6, shares


def test_chain_of_three_plans_holds_every_id_once(store):
    everything = [pictures(store), words(store)]
    first = write_plan(store, [some(everything[0], 2), some(everything[1], 2)], SETTINGS)
    one = after(first, 3)
    second = write_plan(store, [some(everything[0], 4), everything[1]], SETTINGS, one)
    two = after(second, 3 + 5)
    third = write_plan(store, everything, SETTINGS, two)

    check_every_id_once(pieces(third, range(third.num_packs), consumed(one, two)), everything)
    assert is_sound(second) and is_sound(third)
    before = border_before(third)
    assert before is not None and before.own_step == 5 and before.first_pack == 5 * G
    assert third.plan_id != write_plan(store, everything, SETTINGS, after(second, 3 + 6)).plan_id


def test_smaller_context_cuts_texts_and_drops_what_must_stay_whole(store):
    plan, everything = begun(store)
    border = after(plan, 5)

    new = write_plan(store, everything, PlanSettings(context=80, window_documents=16), border)

    rows = dropped(new)
    assert rows and {row["reason"] for row in rows} == {"too_long"} and {row["source"] for row in rows} == {"pictures"}
    found = pieces(new, range(new.num_packs), consumed(border))
    check_every_id_once({name: p for name, p in found.items() if name[0] == "words"}, everything[1:])
    assert is_sound(new)


def test_continued_plan_weighs_what_its_packs_weigh(store):
    from tokenmill.train.loader import PlanLoader

    plan, everything = begun(store)
    changed = SETTINGS.model_copy(update={"vision_weight": 0.25})
    new = write_plan(store, everything, changed, after(plan, 5))
    loader = PlanLoader(new, VOCABULARY, global_packs=G)

    for number in range(loader.steps_per_epoch):
        step = loader.step(number)
        assert not step.faults
        assert sum(float(m.loss_weight.sum()) for m in step.micro_batches) == pytest.approx(step.weight)


def test_continued_plan_killed_in_the_middle_and_resumed_has_the_same_bytes(store, tmp_path):
    plan, everything = begun(store)
    place = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    script = tmp_path / "plan.py"
    script.write_text(_SCRIPT)
    store_copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", store.url, str(store_copy)], check=True)
    whole = write_plan(store, everything, SETTINGS, after(plan, 5))

    for fault in ("plan:after-seen", "commit:before-record:2"):
        command = [sys.executable, str(script), str(store_copy), plan.folder.path]
        done = subprocess.run(command, env={**os.environ, **place, "TOKENMILL_FAULT": fault}, check=False)
        assert done.returncode == -9, fault
    copy = open_store(str(store_copy))
    write_plan(copy, [pictures(copy), words(copy)], SETTINGS, after(open_plan(copy, plan.folder.path), 5))

    names = [
        entry.path for entry in store.files(whole.folder.path) if entry.path.split("/")[3] not in ("logs", "rollups")
    ]
    assert len(names) > 10 and all(copy.read_bytes(name) == store.read_bytes(name) for name in names)


_SCRIPT = """
import sys
from tests.continued_plans import SETTINGS, after, pictures, words
from tokenmill.manifests.plans import open_plan
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.plan import write_plan
store = open_store(sys.argv[1])
write_plan(store, [pictures(store), words(store)], SETTINGS, after(open_plan(store, sys.argv[2]), 5))
"""


def test_verify_names_a_lost_and_a_repeated_document_of_a_continued_plan(store):
    plan, everything = begun(store)
    new = write_plan(store, everything, SETTINGS, after(plan, 5))
    assert verify(store, "", deep=True) == []

    shifted = Plan(new.folder, {**new.description, "continues": {**new.description["continues"], "step": 4}},
                   new.windows, new.shards)  # fmt: skip
    assert any("remained" in fault for fault in continued_faults(shifted))
    shifted = Plan(new.folder, {**new.description, "continues": {**new.description["continues"], "step": 6}},
                   new.windows, new.shards)  # fmt: skip
    assert any("consumed before" in fault for fault in continued_faults(shifted))


def test_shares_of_tokens_speak_of_the_whole_epoch_and_new_data_changes_them(store):
    plan, everything = begun(store, mixed({"pictures": {"share": 0.5}, "words": {"share": 0.5, "max_epochs": 1}}))
    border = after(plan, 3)
    asked = mixed({"pictures": {"share": 0.6}, "words": {"share": 0.4, "max_epochs": 1}})

    new = write_plan(store, everything, asked, border)

    epochs = {name: one["epochs"] for name, one in new.description["sources"].items()}
    found = pieces(new, range(new.num_packs), consumed(border))
    assert epochs["pictures"] == pytest.approx(1.0) and 0 < epochs["words"] < 1
    check_every_id_once({name: p for name, p in found.items() if name[0] == "pictures"}, everything[:1])
    assert is_sound(new)


def test_windows_of_a_continued_plan_hold_on_average_what_is_asked(store):
    plan, everything = begun(store)
    told = [  # whose records tell ids, as those of the tokenize stage do
        Snapshot(
            folder=one.folder, commits=tuple(replace(c, totals={"codes": 300, "text_ids": 300}) for c in one.commits)
        )
        for one in everything
    ]
    new = write_plan(store, told, SETTINGS.model_copy(update={"window_packs": 20}), after(plan, 1))

    assert new.num_packs / len(new.windows) > 16 and len(new.windows) > 1
    assert len(write_plan(store, everything, SETTINGS, after(plan, 1)).windows) > len(new.windows)
