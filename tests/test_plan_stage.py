"""The plan stage: what is drawn, what is refused and why, and that the same inputs give the same plan."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.errors import ManifestError, RecipeError
from tokenmill.manifests.plans import Plan, open_plan, plan_paths
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import read_table
from tokenmill.manifests.storage import Store, open_store
from tokenmill.manifests.verify_plan import plan_faults
from tokenmill.pipelines.plan import plan_folder, plan_vocabulary, write_plan
from tokenmill.pipelines.plan_window import plan_window
from tokenmill.pipelines.plan_windows import windows_of
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.loader import PlanLoader

VOCABULARY = byte_vocabulary(64)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def mixed(store: Store) -> list[Snapshot]:
    return [
        write_token_source(store, "pictures", VOCABULARY, Amounts(images=60, clips=6)),
        write_token_source(store, "words", VOCABULARY, Amounts(texts=60, text_words=60)),
    ]


def placed(plan: Plan) -> list[tuple[str, int, int, int, str]]:
    return [
        (d.shard, d.sample, d.repetition, d.start, d.template) for p in range(plan.num_packs) for d in plan.documents(p)
    ]


def test_plan_of_two_sources_holds_every_sample_once(store: Store) -> None:
    snapshots = mixed(store)
    plan = write_plan(store, snapshots, PlanSettings(context=400))

    firsts = [(shard, sample) for shard, sample, _, start, _ in placed(plan) if start == 0]
    expected = {(s.folder.at(c.data.name), n) for s in snapshots for c in s.commits for n in range(c.counts.out)}
    assert len(firsts) == len(set(firsts)) == len(expected)
    assert set(firsts) == expected
    assert plan_faults(plan) == []
    assert plan.description["fill"] > 0.95
    assert plan_paths(store, "pretrain") == [plan.folder.path]


def test_plan_made_twice_is_the_same_and_another_seed_is_not(store: Store, tmp_path: Path) -> None:
    elsewhere = open_store(str(tmp_path / "elsewhere"))
    first = write_plan(store, mixed(store), PlanSettings(context=400))
    again = write_plan(elsewhere, mixed(elsewhere), PlanSettings(context=400))
    other = write_plan(store, mixed(store), PlanSettings(context=400, seed=1))

    assert first.plan_id == again.plan_id != other.plan_id
    assert first.description["snapshot"] == again.description["snapshot"]
    assert placed(first) == placed(again) != placed(other)


def test_plan_windows_in_any_order_are_pure_functions(store: Store) -> None:
    snapshots = mixed(store)
    settings = PlanSettings(context=400, window_documents=20)
    folder = plan_folder(store, snapshots, settings)
    windows = windows_of(folder.config.digest, snapshots, settings)

    forwards = [plan_window(folder, window, settings, plan_vocabulary(snapshots)) for window in windows]
    backwards = [plan_window(folder, window, settings, plan_vocabulary(snapshots)) for window in reversed(windows)]

    assert len(windows) > 2
    assert all(a.documents.equals(b.documents) for a, b in zip(forwards, reversed(backwards), strict=True))


def test_plan_windows_hold_every_pass_once_whatever_is_left_for_the_last(store: Store) -> None:
    snapshots = [write_token_source(store, "pictures", VOCABULARY, Amounts(images=90, shards=9))]
    for documents in (11, 20, 21, 31, 43, 1000):
        settings = PlanSettings(context=512, window_documents=documents)
        windows = windows_of("an id", snapshots, settings)
        taken = [shard.archive for window in windows for shard in window.shards]
        assert len(taken) == len(set(taken)) == 9, documents
        assert all(sum(s.num_samples for s in w.shards) >= documents / 2 for w in windows) or len(windows) == 1


def test_plan_mix_takes_sources_several_times_and_in_part(store: Store) -> None:
    plan = write_plan(store, mixed(store), PlanSettings(context=400, mix={"words": 2.5, "pictures": 0.5}))

    taken = Counter(d[0].split("/")[1] for d in placed(plan) if d[3] == 0)
    assert 120 < taken["words"] < 180
    assert 15 < taken["pictures"] < 50
    counts = plan.description["counts"]
    assert counts["in"] == counts["kept"] + sum(counts["dropped"].values())
    assert set(counts["dropped"]) == {"not_drawn"}


def test_plan_held_out_parts_share_no_sample(store: Store) -> None:
    snapshots = mixed(store)
    training = write_plan(store, snapshots, PlanSettings(context=400, held_out=0.2))
    held_out = write_plan(store, snapshots, PlanSettings(context=400, held_out=0.2, part="held_out"))

    ours, theirs = ({(d[0], d[1]) for d in placed(plan)} for plan in (training, held_out))
    assert not ours & theirs
    assert len(ours | theirs) == 126
    assert 10 < len(theirs) < 45


def test_plan_document_longer_than_context_is_dropped_with_its_key(store: Store) -> None:
    plan = write_plan(store, mixed(store), PlanSettings(context=150))

    dropped = plan.description["counts"]["dropped"]
    assert set(dropped) == {"too_long"}
    (commit,) = [plan.folder.read_commit(unit, 0) for unit in plan.folder.record_names()]
    entry = commit.file("dropped")
    assert entry is not None
    rows = read_table(store, plan.folder.at(entry.name))
    assert sum(key.startswith("pictures-clip-") for key in rows["key"]) == 6
    assert set(rows["reason"]) == {"too_long"}


def test_plan_long_clips_may_be_split_into_whole_frames(store: Store) -> None:
    plan = write_plan(store, mixed(store), PlanSettings(context=150, split_long_clips=True))

    stretches = [d for p in range(plan.num_packs) for d in plan.documents(p) if d.frames]
    assert stretches
    assert plan.description["counts"]["dropped"] == {}
    per_clip = Counter((d.shard, d.sample) for d in stretches)
    assert sum(d.frames for d in stretches) == 3 * len(per_clip)
    loader = PlanLoader(plan, VOCABULARY, global_packs=1)
    assert not any(loader.step(step).faults for step in range(loader.steps_per_epoch))


def test_plan_excluded_key_is_left_out(store: Store) -> None:
    plan = write_plan(store, mixed(store), PlanSettings(context=400, exclude=("words-text-000003",)))

    assert plan.description["counts"]["dropped"] == {"excluded": 1}


def test_plan_templates_come_in_their_shares_and_only_where_they_fit(store: Store) -> None:
    shares = {
        "image": {"understanding": 1.0},
        "video": {"generation": 1.0},
        "text": {"generation": 0.5, "language": 0.5},
    }
    plan = write_plan(store, mixed(store), PlanSettings(context=400, templates=shares))

    assert {name: t["documents"] for name, t in plan.description["templates"].items()} == {
        "understanding": 60,
        "generation": 6,
        "language": 60,
    }


def test_plan_weights_are_those_of_the_assembled_packs(store: Store) -> None:
    plan = write_plan(store, mixed(store), PlanSettings(context=400, vision_weight=0.25))
    loader = PlanLoader(plan, VOCABULARY, global_packs=3)

    for number in range(loader.steps_per_epoch):
        step = loader.step(number)
        assert np.isclose(sum(float(m.loss_weight.sum()) for m in step.micro_batches), step.weight)
        assert sum(m.num_tokens for m in step.micro_batches) == step.num_tokens


def test_plan_of_different_vocabularies_is_refused(store: Store) -> None:
    other = write_token_source(store, "others", byte_vocabulary(32), Amounts(images=3))

    with pytest.raises(RecipeError, match="different vocabularies"):
        write_plan(store, [*mixed(store), other], PlanSettings(context=400))


def test_plan_mix_of_unknown_source_is_refused_by_name(store: Store) -> None:
    with pytest.raises(RecipeError, match="nowhere"):
        write_plan(store, mixed(store), PlanSettings(context=400, mix={"nowhere": 1.0}))


def test_plan_of_which_nothing_is_left_is_refused(store: Store) -> None:
    pictures = write_token_source(store, "pictures", VOCABULARY, Amounts(images=4, shards=1))

    with pytest.raises(RecipeError, match="too_long"):
        write_plan(store, [pictures], PlanSettings(context=32))


def test_open_plan_with_a_changed_table_names_it(store: Store) -> None:
    plan = write_plan(store, mixed(store), PlanSettings(context=400))
    name = plan.folder.at("windows.parquet")
    store.put(name, store.read_bytes(name)[:-1] + b"X")

    with pytest.raises(ManifestError, match=r"windows\.parquet"):
        open_plan(store, plan.folder.path)
