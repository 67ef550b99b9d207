"""Plans that go on from another in its middle: every id once over both, whatever came, went or was made anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenmill.demo.tokens import Amounts, write_shards, write_token_source
from tokenmill.errors import RecipeError
from tokenmill.manifests.plan_border import Border, border_before
from tokenmill.manifests.plan_pieces import continued_faults
from tokenmill.manifests.plans import Plan, open_plan, read_named_table
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import read_table
from tokenmill.manifests.storage import Store, open_store
from tokenmill.manifests.verify import verify
from tokenmill.manifests.verify_plan import plan_faults
from tokenmill.pipelines.plan import write_plan
from tokenmill.pipelines.plan_continue import border_of
from tokenmill.settings_train import PlanSettings, TrainSettings
from tokenmill.tokenize.documents import TextSegment, assembled_length, segments_from_json
from tokenmill.tokenize.vocabulary import byte_vocabulary

VOCABULARY = byte_vocabulary(64)
SETTINGS = PlanSettings(context=300, window_documents=16)
G = 4
Pieces = dict[tuple[str, str, int], list[tuple[int, int, str, int]]]  # (source, key, pass) → start, length, template, …


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def pictures(store: Store, shards: int = 6, images: int = 60) -> Snapshot:
    return write_token_source(store, "pictures", VOCABULARY, Amounts(images=images, shards=shards))


def words(store: Store) -> Snapshot:
    return write_token_source(store, "words", VOCABULARY, Amounts(texts=24, text_words=100, shards=3))


def some(snapshot: Snapshot, count: int) -> Snapshot:
    """The state of a source when it had only its first shards."""
    return published(Snapshot(folder=snapshot.folder, commits=tuple(snapshot.commits[:count])))


def published(snapshot: Snapshot) -> Snapshot:
    snapshot.publish()
    return snapshot


def begun(store: Store, settings: PlanSettings = SETTINGS) -> tuple[Plan, list[Snapshot]]:
    """A plan over two thirds of the pictures and all texts; and the snapshots with all of them."""
    everything = [pictures(store), words(store)]
    return write_plan(store, [some(everything[0], 4), everything[1]], settings), everything


def mixed(mix: dict[str, Any]) -> PlanSettings:
    return PlanSettings(context=300, window_documents=16, mix=mix)


def after(plan: Plan, step: int) -> Border:
    return Border(plan=plan, step=step, global_packs=G)


def pieces(plan: Plan, packs: Iterable[int], found: Pieces | None = None) -> Pieces:
    """Collect the pieces in some packs by what they are pieces of."""
    found = defaultdict(list) if found is None else found
    keys: dict[str, list[str]] = {}
    for placed in (placed for pack in packs for placed in plan.documents(pack)):
        if placed.shard not in keys:
            keys[placed.shard] = read_named_table(plan.folder.store, plan.index_of[placed.shard])["key"].to_list()
        name = (placed.source, keys[placed.shard][placed.sample], placed.repetition)
        found[name].append((placed.start, placed.length, placed.template, placed.variant))
    return found


def consumed(*borders: Border) -> Pieces:
    found: Pieces = defaultdict(list)
    for border in borders:
        pieces(border.plan, range(border.first_pack), found)
    return found


def check_every_id_once(found: Pieces, snapshots: Sequence[Snapshot], passes: int = 1) -> None:
    """Every sample of the snapshots was planned under one template, and every id of it exactly once a pass."""
    expected = set()
    for snapshot in snapshots:
        for commit in snapshot.commits:
            for row in snapshot.folder.read_rows(commit).iter_rows(named=True):
                for repetition in range(passes):
                    name = (snapshot.folder.source, row["key"], repetition)
                    expected.add(name)
                    ids = Counter(n for start, length, *_ in found[name] for n in range(start, start + length))
                    ((template, variant),) = {piece[2:] for piece in found[name]}
                    segments = segments_from_json(json.loads(row["segments"]))
                    length = assembled_length(segments, template, VOCABULARY, variant)
                    assert ids == Counter(range(length)), name
    assert set(found) == expected


def dropped(plan: Plan) -> list[dict[str, Any]]:
    rows = []
    for unit, attempt in plan.folder.record_names().items():
        entry = plan.folder.read_commit(unit, attempt).file("dropped")
        assert entry is not None
        rows += list(read_table(plan.folder.store, plan.folder.at(entry.name)).iter_rows(named=True))
    return rows


def is_sound(plan: Plan) -> bool:
    return plan_faults(plan) == [] and list(continued_faults(plan)) == []


@pytest.mark.parametrize("step", [0, 1, 7, "end"])
def test_continued_plan_and_what_was_consumed_hold_every_id_once(step, store):
    plan, everything = begun(store)
    border = after(plan, step if step != "end" else -(-plan.num_packs // G))
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


def test_samples_of_a_shard_that_left_leave_with_a_reason_and_their_keys(store):
    plan, everything = begun(store)
    border = after(plan, 4)
    left = everything[0].folder.at(everything[0].commits[0].data.name)
    smaller = published(Snapshot(folder=everything[0].folder, commits=tuple(everything[0].commits[1:])))

    new = write_plan(store, [smaller, everything[1]], SETTINGS, border)

    remained = pieces(plan, range(border.first_pack, plan.num_packs))
    names = smaller.folder.read_rows(everything[0].commits[0])["key"].to_list()
    keys = set(names) & {name[1] for name in remained}
    assert {(names[row["sample"]], row["reason"], row["shard"]) for row in dropped(new)} == {
        (key, "gone", left) for key in keys
    }
    assert new.description["continues"]["gone_documents"] == new.description["counts"]["dropped"]["gone"] == len(keys)
    found = pieces(new, range(new.num_packs), consumed(border))
    check_every_id_once(
        {n: p for n, p in found.items() if n[1] not in gone_keys(everything[0], 1)}, [smaller, everything[1]]
    )
    assert is_sound(new)


def test_windows_of_which_every_shard_left_are_empty_and_the_rest_goes_on(store):
    plan, everything = begun(store)
    border = after(plan, 9)

    new = write_plan(store, everything[1:], SETTINGS, border)

    assert {placed.source for pack in range(new.num_packs) for placed in new.documents(pack)} == {"words"}
    found = pieces(new, range(new.num_packs), consumed(border))
    check_every_id_once({name: p for name, p in found.items() if name[0] == "words"}, everything[1:])
    assert is_sound(new)


def gone_keys(snapshot: Snapshot, count: int) -> set[str]:
    return {key for commit in snapshot.commits[:count] for key in snapshot.folder.read_rows(commit)["key"]}


def test_samples_of_shards_made_anew_that_were_seen_do_not_come_again(store):
    plan, everything = begun(store)
    border = after(plan, 12)
    anew = [pictures(store, shards=5, images=60), everything[1]]
    assert not {c.unit for c in anew[0].commits} & {c.unit for c in everything[0].commits}

    new = write_plan(store, anew, SETTINGS, border)

    check_every_id_once(pieces(new, range(new.num_packs), consumed(border)), anew)
    seen = [name for name in consumed(border) if name[0] == "pictures"]
    assert seen and new.description["counts"]["dropped"]["seen"] == len(seen)
    assert is_sound(new)

    again = [pictures(store, shards=4, images=60), everything[1]]
    two = after(new, 12 + 3)
    third = write_plan(store, again, SETTINGS, two)
    check_every_id_once(pieces(third, range(third.num_packs), consumed(border, two)), again)


def others_texts(store: Store, groups: Sequence[Sequence[int]]) -> Snapshot:
    """Texts by number in archives `0.tar`, `1.tar`, …: those of others keep their names when they are made anew."""
    ids = [np.array(VOCABULARY.text.encode("word " * (7 + number)), np.uint32) for number in range(99)]
    samples = [
        [(f"text-{n:02d}", "text", [TextSegment(0, len(ids[n]), "body")], ids[n], ids[n][:0]) for n in group]
        for group in groups
    ]
    made = write_shards(store, "others", VOCABULARY, samples)
    files = [(replace(one.data, name=f"{n}.tar"), one.rows) for n, one in enumerate(made.commits)]
    return Snapshot(
        folder=made.folder,
        commits=tuple(replace(one, files=two) for one, two in zip(made.commits, files, strict=True)),
    )


def test_shards_made_anew_under_their_old_names_give_what_was_not_seen(store):
    border = after(write_plan(store, [others_texts(store, [range(15), range(15, 30)])], SETTINGS), 2)
    anew = others_texts(store, [[40, *range(14, 2, -1), 41], range(15, 30)])

    new = write_plan(store, [anew], SETTINGS, border)

    found, seen = pieces(new, range(new.num_packs)), consumed(border)
    here = {name: one for name, one in found.items() if name[1] not in {f"text-{n}" for n in range(15, 30)}}
    before = {name for name in seen if name[1] < "text-15"}
    assert before and set(here) == {("others", f"text-{n:02d}", 0) for n in (40, 41, *range(3, 15))} - before
    assert list(continued_faults(new)) == []


def test_shards_made_anew_whose_old_index_is_gone_are_refused_by_name(store):
    plan, everything = begun(store)
    border = after(plan, 12)
    shard = next(d.shard for p in range(border.first_pack) for d in plan.documents(p) if d.source == "pictures")
    index = plan.index_of[shard]
    store.delete(index)

    with pytest.raises(RecipeError, match=index.rsplit("/", 1)[-1]):
        write_plan(store, [pictures(store, shards=5), everything[1]], SETTINGS, border)


def test_raised_mix_adds_only_the_passes_that_were_not_had(store):
    plan, everything = begun(store)
    border = after(plan, 6)
    raised = mixed({"pictures": 2.0, "words": 2.0})

    new = write_plan(store, everything, raised, border)

    check_every_id_once(pieces(new, range(new.num_packs), consumed(border)), everything, passes=2)
    assert is_sound(new)


def test_share_raised_step_by_step_adds_up_to_one_pass(store):
    everything = [pictures(store), words(store)]
    shares = [mixed({"pictures": s, "words": s}) for s in (0.3, 0.7, 1.0)]
    first = write_plan(store, everything, shares[0])
    one = after(first, 2)
    second = write_plan(store, everything, shares[1], one)
    two = after(second, 4)
    third = write_plan(store, everything, shares[2], two)

    assert first.description["totals"]["documents"] < 60 < second.description["totals"]["documents"] + 40
    check_every_id_once(pieces(third, range(third.num_packs), consumed(one, two)), everything)
    assert is_sound(second) and is_sound(third)


def test_lowered_mix_lets_the_rest_go_and_raised_again_brings_it_back(store):
    plan, everything = begun(store, mixed({"pictures": 2.0, "words": 1.0}))
    one = after(plan, 6)
    second = write_plan(store, everything, SETTINGS, one)

    assert second.description["counts"]["dropped"]["lowered"] > 0
    assert {name[2] for name in pieces(second, range(second.num_packs))} == {0}
    assert is_sound(second)

    two = after(second, 6 + 3)
    raised = mixed({"pictures": 2.0, "words": 2.0})
    third = write_plan(store, everything, raised, two)
    check_every_id_once(pieces(third, range(third.num_packs), consumed(one, two)), everything, passes=2)


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
    place = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
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
from test_plan_continue import SETTINGS, after, open_plan, open_store, pictures, words, write_plan
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


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"seed": 1}, "plan.seed"), ({"held_out": 0.1}, "plan.held_out"), ({"part": "held_out"}, "plan.part")],
)
def test_what_the_draws_hang_on_cannot_change_in_the_middle(changed, told, store):
    plan, everything = begun(store)
    with pytest.raises(RecipeError, match=told):
        write_plan(store, everything, SETTINGS.model_copy(update=changed), after(plan, 5))


def test_another_vocabulary_is_refused(store):
    plan, _ = begun(store)
    other = write_token_source(store, "others", byte_vocabulary(32), Amounts(images=3))
    with pytest.raises(RecipeError, match="another vocabulary"):
        write_plan(store, [other], SETTINGS, after(plan, 5))


def test_end_of_a_plan_with_nothing_new_is_refused(store):
    plan, everything = begun(store)
    end = -(-plan.num_packs // G)
    with pytest.raises(RecipeError, match="add data"):
        write_plan(store, [some(everything[0], 4), everything[1]], SETTINGS, after(plan, end))


def test_plan_and_step_are_found_by_folder_digits_and_url(store):
    plan, _ = begun(store)
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
def test_what_names_no_step_of_a_plan_is_refused_with_what_is_there(asked, told, store):
    plan, _ = begun(store)
    with pytest.raises(RecipeError, match=told):
        border_of(store, asked.format(plan=plan.folder.path), "pretrain", TrainSettings(global_packs_per_step=G))


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
