"""Plans that go on from another, and the recount of what they and the plans before hold, id by id."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.manifests.plan_border import Border
from tokenmill.manifests.plan_pieces import continued_faults
from tokenmill.manifests.plans import Plan, read_named_table
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import read_table
from tokenmill.manifests.storage import Store
from tokenmill.manifests.verify_plan import plan_faults
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.documents import assembled_length, segments_from_json
from tokenmill.tokenize.vocabulary import byte_vocabulary

VOCABULARY = byte_vocabulary(64)
SETTINGS = PlanSettings(context=300, window_documents=16)
G = 4
Pieces = dict[tuple[str, str, int], list[tuple[int, int, str, int]]]  # (source, key, pass) → start, length, template, …


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


def gone_keys(snapshot: Snapshot, count: int) -> set[str]:
    return {key for commit in snapshot.commits[:count] for key in snapshot.folder.read_rows(commit)["key"]}
