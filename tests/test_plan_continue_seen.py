"""What a plan that goes on from another takes when shards left, came back or were made anew, or the mix changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.continued_plans import (
    SETTINGS,
    VOCABULARY,
    after,
    begun,
    check_every_id_once,
    consumed,
    dropped,
    gone_keys,
    is_sound,
    mixed,
    pictures,
    pieces,
    published,
    words,
)

from tokenmill.demo.tokens import write_shards
from tokenmill.errors import ManifestError, RecipeError
from tokenmill.manifests.plan_pieces import continued_faults
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import table_bytes
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.pipelines.plan_continue_seen import SEEN_COLUMNS, SeenRows
from tokenmill.pipelines.plan_windows import ShardPass
from tokenmill.tokenize.documents import TextSegment


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


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


def test_seen_rows_of_a_pass_are_found_in_any_group_of_the_file_and_damage_is_named():
    counts = {"a.tar": 70_000, "b.tar": 10, "c.tar": 65_000}
    tables = [pl.DataFrame({"shard": [shard] * count, "sample": range(count)}) for shard, count in counts.items()]
    rows = pl.concat(tables).with_columns(repetition=pl.lit(0)).cast(SEEN_COLUMNS)
    seen = SeenRows(path="plans/p/seen.parquet", data=table_bytes(rows, 1))

    for shard, count in {**counts, "bb.tar": 0}.items():
        one = ShardPass(source="s", archive=shard, index="", digest="", repetition=0, share=1.0, num_samples=count)
        assert seen.of(one).tolist() == list(range(count))
        assert seen.of(replace(one, repetition=1)).tolist() == []
    damaged = replace(seen, data=seen.data[:-100])
    with pytest.raises(ManifestError, match=r"plans/p/seen\.parquet"):
        damaged.of(one)
