"""`tokenmill plan --simulate` tells what a real run then reads, counted where it reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tokenmill.cli import main
from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.errors import RecipeError
from tokenmill.manifests.plans import Plan, open_plan
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.loader import PlanLoader
from tokenmill.train.shard_bytes import StoreBytes
from tokenmill.train.shard_ranges import Piece, Range
from tokenmill.train.simulate import CountingStore, Simulated, simulate

VOCABULARY = byte_vocabulary(64)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    store = open_store(str(tmp_path_factory.mktemp("made") / "root"))
    snapshots = [
        write_token_source(store, "pictures", VOCABULARY, Amounts(images=300, clips=20, shards=4)),
        write_token_source(store, "words", VOCABULARY, Amounts(texts=200, shards=3)),
    ]
    return write_plan(store, snapshots, PlanSettings(context=512, window_documents=100))


class CountedRanges(StoreBytes):
    """Reads everything by ranges, as of a remote store; what the store is asked for is counted there."""

    def file(self, shard: str) -> None:
        return None

    def fetch(self, wanted: Mapping[str, Sequence[Range]]) -> dict[str, list[Piece]]:
        return super().fetch(wanted)


class RangesStore(CountingStore):
    """Counts ranged reads, too."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(url, options)
        self.ranges: list[tuple[str, int]] = []

    def read_range(self, path: str, start: int, length: int) -> bytes:
        self.ranges.append((path, length))
        return super().read_range(path, start, length)


def real_runs(plan: Plan, how: Simulated, start: int, stop: int) -> Iterator[tuple[RangesStore, int]]:
    """Run every rank alone; gives its store, and the ids that it was given."""
    for rank in range(how.ranks):
        store = RangesStore(plan.folder.store.url)
        mine = open_plan(store, plan.folder.path)
        store.read.clear()
        shared_by = how.sequence_parallel
        loader = PlanLoader(mine, VOCABULARY, global_packs=how.global_packs, rank=rank // shared_by,
                            world=how.ranks // shared_by, micro_packs=how.micro_packs,
                            attention_share=how.attention_share, threads=0,
                            source=CountedRanges(store))  # fmt: skip
        tokens = 0
        for number in range(start, stop):
            parts: Sequence[int | None] = range(loader.micro_steps) if how.workers else [None]
            for only in parts:
                step = loader.step(number, only)
                assert not step.faults
                tokens += sum(batch.num_tokens for batch in step.micro_batches)
        yield store, tokens


@pytest.mark.parametrize(
    "how",
    [
        Simulated(ranks=1, workers=0, global_packs=4),
        Simulated(ranks=3, workers=0, global_packs=8, micro_packs=2, attention_share=0.01),
        Simulated(ranks=2, workers=2, global_packs=8),
        Simulated(ranks=4, workers=0, global_packs=2, sequence_parallel=2),
    ],
)
def test_simulation_tells_the_requests_and_bytes_of_a_real_run_on_every_rank(plan: Plan, how: Simulated) -> None:
    found = simulate(plan.folder.store, plan.folder.path, how, 1, 7)
    for rank, (store, tokens) in zip(found["of_ranks"], real_runs(plan, how, 1, 7), strict=True):
        assert rank["requests"] == len(store.ranges)
        assert rank["bytes"] == sum(length for _, length in store.ranges)
        assert rank["shards"] == len({path for path, _ in store.ranges})
        assert rank["tokens"] == tokens
        tables = found["tables_of_a_process"]
        assert sum(one["reads"] for one in tables.values()) == len(store.read)
        assert sum(one["bytes"] for one in tables.values()) == sum(length for _, length in store.read)
    assert found["samples"]["bytes"] == sum(rank["bytes"] for rank in found["of_ranks"])
    assert 0 < found["samples"]["bytes_used"] <= found["samples"]["bytes"]


def test_simulation_reads_no_archive(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    for name in ("read_range", "read_ranges", "open", "local_path"):
        monkeypatch.setattr(Store, name, lambda self, path, *_: read.append(path))
    simulate(plan.folder.store, plan.folder.path, Simulated(ranks=2, workers=0, global_packs=4), 0, 3)
    assert not [path for path in read if path.endswith(".tar")]


def test_simulation_of_all_ranks_together_reads_every_pack_once(plan: Plan) -> None:
    steps = -(-plan.num_packs // 8)
    found = simulate(plan.folder.store, plan.folder.path, Simulated(ranks=4, workers=0, global_packs=8), 0, steps)
    assert sum(rank["tokens"] for rank in found["of_ranks"]) == plan.description["totals"]["tokens"]
    assert found["samples"]["shards"] == len(plan.shards)
    assert found["tables_of_a_process"]["indexes"]["files"] == len(plan.shards)
    assert found["tables_of_a_process"]["windows"]["files"] == 2 * len(plan.windows)
    assert all(number >= 1 for number in found["spread"].values())
    memory = found["memory_of_a_process"]
    assert all(number > 0 for number in memory.values())
    assert memory["fetched"] == max(rank["largest_step_bytes"] for rank in found["of_ranks"])


def test_simulation_of_more_workers_multiplies_what_processes_read_and_hold(plan: Plan) -> None:
    one, four = (
        simulate(plan.folder.store, plan.folder.path, Simulated(ranks=2, workers=number, global_packs=8), 0, 4)
        for number in (1, 4)
    )
    assert (one["processes"], four["processes"]) == (2, 8)
    assert four["table_bytes"] == 4 * one["table_bytes"]
    assert four["memory_of_a_rank"] == 4 * one["memory_of_a_rank"]
    assert four["of_ranks"] == one["of_ranks"]


def test_simulation_of_more_ranks_than_packs_is_refused(plan: Plan) -> None:
    with pytest.raises(RecipeError, match="cannot share"):
        simulate(plan.folder.store, plan.folder.path, Simulated(ranks=5, workers=0, global_packs=4), 0, 1)
    with pytest.raises(RecipeError, match="from a step to a later one"):
        simulate(plan.folder.store, plan.folder.path, Simulated(ranks=1, workers=0, global_packs=4), 3, 3)


def test_simulate_command_tells_a_table_or_json_and_refuses_wrong_options(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere, names = plan.folder.store.url, list(plan.description["sources"])
    sources = {
        name: {"kind": "tokens", "url": f"{elsewhere}/{plan.description['sources'][name]['folder']}"} for name in names
    }
    value = {
        "root": str(tmp_path / "root"),
        "sources": sources,
        "tokenize": {"vocabulary": VOCABULARY.spec, "vision": {"name": "scenes"}},
        "execution": {"executor": "inline"},
        "plan": {"context": 512},
        "train": {"global_packs_per_step": 4},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(value))
    command = ["plan", str(path)]
    assert main([*command, "--simulate"]) == 1
    assert "units are missing" in capsys.readouterr().err
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--simulate", "--ranks", "2", "--workers", "3", "--steps", "0:5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ranks"], found["workers"], found["steps"]) == (2, 3, [0, 5])
    assert main([*command, "--simulate", "--steps", "2:4"]) == 0
    assert "steps 2 to 3" in capsys.readouterr().out
    wrong = {"--ranks 0": "at least 1", "--steps 3": "A:B", "--steps 4:4": "A:B", "--ranks 9": "cannot share"}
    for words, told in wrong.items():
        assert main([*command, "--simulate", *words.split()]) == 2
        assert told in capsys.readouterr().err
    assert main([*command, "--simulate", f"train.model.from={tmp_path}/nothing"]) == 2
    assert f"train.model.from: {tmp_path}/nothing: " in capsys.readouterr().err
    assert main([*command, "--ranks", "2"]) == 2
    assert "goes with --simulate" in capsys.readouterr().err
    (made,) = (tmp_path / "root" / "plans").glob("*/*")
    further = [*command, "--continue-from", f"{made.name}@2"]
    assert main(further) == 0
    capsys.readouterr()
    assert main([*further, "--simulate", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (later,) = [one for one in made.parent.iterdir() if one != made]
    assert found["plan"][:16] == later.name and found["steps"][0] == 2, "steps count over the whole run"
    assert main([*further, "--simulate", "--steps", "1:4"]) == 2
    assert "takes over at step 2" in capsys.readouterr().err
