"""Rollups: a resume with them is the resume without them, whatever happened to them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
from tests.stages import commit_of, folder_at, run, units_of

from tokenmill.manifests import rollup_writer
from tokenmill.manifests.ledger import columns_of
from tokenmill.manifests.rollup_writer import RollupWriter, to_absorb
from tokenmill.manifests.rollups import (
    RollupSize,
    check_rollups,
    forget_rollups,
    parse_rollup,
    read_ledger,
    rollup_bytes,
    rollup_path,
    rollup_paths,
)
from tokenmill.manifests.snapshots import read_snapshot
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.runner import IncompleteStageError


class Counting(Store):
    """Counts the records that are read singly."""

    singly = 0

    def read_bytes(self, path):
        self.singly += "/commits/" in path
        return super().read_bytes(path)


@pytest.fixture
def folder(tmp_path, small_rollups):
    return folder_at(tmp_path, Counting(str(tmp_path)))


def _digests(folder):
    records = columns_of(read_ledger(folder)[0].in_order_of_name(), "unit", "attempt", "record_sha256")
    return {(unit, attempt): digest for unit, attempt, digest in records.rows()}


def test_resume_reads_the_rollups_and_only_newer_records(folder):
    units = units_of(103)
    first = run(folder, units[:100])
    extra = commit_of(folder, units[100])
    folder.publish_commit(extra)
    folder.store.singly = 0
    again = run(folder, units[:101])
    assert folder.store.singly <= 4
    assert again.commits[:100] == first.commits
    assert again.commits[100] == extra
    forget_rollups(folder)
    folder.store.singly = 0
    alone = run(folder, units[:101], allow_work=False)
    assert (alone.digest, alone.counts, alone.totals) == (again.digest, again.counts, again.totals)
    assert folder.store.singly == 101
    assert read_snapshot(folder, first.digest).commits == first.commits


def test_rollups_are_few_and_hold_every_record_once(folder):
    run(folder, units_of(200))
    frames = [parse_rollup(folder, path, folder.store.read_bytes(path)) for path in rollup_paths(folder)]
    assert len(frames) <= 200 // 16 + 5
    assert sum(frame.height for frame in frames) >= 200 - rollup_writer.FEWEST
    assert sum(frame.height for frame in frames) == sum(frame["unit"].n_unique() for frame in frames)
    assert check_rollups(folder, _digests(folder)) == []


def test_removed_record_behind_a_rollup_is_missing_and_done_again(folder):
    units = units_of(40)
    snapshot = run(folder, units)
    folder.store.delete(folder.at(snapshot.commits[5].record_name))
    with pytest.raises(IncompleteStageError, match="1 of 40 units are missing"):
        run(folder, units, allow_work=False)
    assert run(folder, units).digest == snapshot.digest
    assert run(folder, units, allow_work=False).digest == snapshot.digest


def test_removed_record_that_became_another_is_read_as_it_is_now(folder, monkeypatch):
    units = units_of(40)
    snapshot = run(folder, units)
    folder.store.delete(folder.at(snapshot.commits[5].record_name))
    other = commit_of(folder, units[5], totals={"bytes": 7})
    monkeypatch.setattr("tests.stages.commit_of", lambda *_, **__: other)
    assert run(folder, units).commits[5] == other
    again = run(folder, units, allow_work=False)
    assert again.commits[5] == other
    assert check_rollups(folder, _digests(folder)) == []


@pytest.mark.parametrize("damage", ["flip", "cut", "foreign", "no table"])
def test_bad_rollup_is_ignored_told_and_written_anew(damage, folder, tmp_path, caplog):
    units = units_of(40)
    snapshot = run(folder, units)
    path = rollup_paths(folder)[0]
    data = folder.store.read_bytes(path)
    bad = {"flip": data[:99] + bytes([data[99] ^ 1]) + data[100:], "cut": data[:-9], "no table": b"no table"}.get(
        damage
    )
    if damage == "foreign":
        rows = parse_rollup(folder, path, data)
        source = folder_at(tmp_path / "other").config
        other = type(folder)(store=folder.store, source="x", config=type(source)(stage="ingest", version=1, schema=1))
        bad = rollup_bytes(other, rows)
        folder.store.put(rollup_path(folder, bad), bad)
        path = rollup_path(folder, bad)
    elif damage == "no table":
        path = rollup_path(folder, bad)
    folder.store.put(path, bad)
    (fault,) = check_rollups(folder, _digests(folder))
    assert fault.path == path
    with caplog.at_level(logging.WARNING):
        assert run(folder, units, allow_work=False).digest == snapshot.digest
    assert "rollup" in caplog.text
    assert run(folder, units).digest == snapshot.digest
    assert path not in rollup_paths(folder)
    assert check_rollups(folder, _digests(folder)) == []


def test_rollup_of_a_newer_tokenmill_is_left_alone(folder, monkeypatch):
    snapshot = run(folder, units_of(40))
    rows = parse_rollup(folder, path := rollup_paths(folder)[0], folder.store.read_bytes(path))
    monkeypatch.setattr("tokenmill.manifests.rollups.ROLLUP_SCHEMA", 2)
    newer = rollup_bytes(folder, rows)
    monkeypatch.undo()
    folder.store.put(rollup_path(folder, newer), newer)
    assert run(folder, units_of(40)).digest == snapshot.digest
    assert rollup_path(folder, newer) in rollup_paths(folder)


def test_rollups_that_contradict_each_other_count_for_nothing(folder):
    units = units_of(40)
    snapshot = run(folder, units)
    rows = parse_rollup(folder, path := rollup_paths(folder)[0], folder.store.read_bytes(path))
    lie = rollup_bytes(folder, columns_with(commit_of(folder, units[3], totals={"bytes": 1}), rows))
    folder.store.put(rollup_path(folder, lie), lie)
    assert check_rollups(folder, _digests(folder)) != []
    assert run(folder, units).digest == snapshot.digest
    assert check_rollups(folder, _digests(folder)) == []


def columns_with(commit, rows):
    from tokenmill.manifests.ledger import tabulate

    return tabulate([commit]).select(rows.columns)


def test_rollup_removed_while_it_is_read_is_found_again_in_its_successor(folder, monkeypatch):
    units = units_of(40)
    snapshot = run(folder, units)
    ledger, _ = read_ledger(folder)
    before = rollup_paths(folder)
    real = Counting.read_bytes

    def vanishing(store, path):
        if path in before:
            monkeypatch.setattr(Counting, "read_bytes", real)
            whole = rollup_bytes(folder, ledger.rows(range(len(ledger))).sort("unit"))
            folder.store.put(rollup_path(folder, whole), whole)
            for old in before:
                folder.store.delete(old)
        return real(store, path)

    monkeypatch.setattr(Counting, "read_bytes", vanishing)
    folder.store.singly = 0
    assert run(folder, units, allow_work=False).digest == snapshot.digest
    assert folder.store.singly == 0


def test_two_drivers_at_once_leave_rollups_that_agree(folder, tmp_path):
    units = units_of(60)
    other = folder_at(tmp_path)
    drivers = [RollupWriter(*read_ledger(one)) for one in (folder, other)]
    for number, unit in enumerate(units):
        commit = folder.publish_commit(commit_of(folder, unit))
        for driver in drivers if number % 3 else drivers[:1]:
            driver.add(commit)
    for driver in drivers:
        driver.finish()
    assert check_rollups(folder, {}) == []
    snapshot = run(folder, units, allow_work=False)
    assert [commit.unit for commit in snapshot.commits] == [unit.name for unit in units]


def test_store_that_refuses_rollups_does_not_stop_the_run(folder, monkeypatch, caplog):
    real = Counting.put

    def refusing(store, path, data):
        if "/rollups/" in path:
            from tokenmill.errors import StorageError

            raise StorageError("disk full")
        real(store, path, data)

    monkeypatch.setattr(Counting, "put", refusing)
    snapshot = run(folder, units_of(60))
    assert len(snapshot.commits) == 60
    assert caplog.text.count("disk full") == 1
    assert rollup_paths(folder) == []


_KILLED = """
import sys
from tokenmill.manifests import rollup_writer
rollup_writer.WRITE_EVERY, rollup_writer.FEWEST, rollup_writer.FULL_RECORDS = 8, 2, 32
from tests.stages import folder_at, run, units_of
print(run(folder_at(sys.argv[1]), units_of(60)).digest)
"""


@pytest.mark.parametrize("point", ["rollup:before-publish:2", "rollup:after-publish:3", "rollup:half-removed:2"])
def test_run_killed_at_a_rollup_is_resumed(point, tmp_path, small_rollups):
    command = [sys.executable, "-c", _KILLED, str(tmp_path)]
    killed = subprocess.run(command, env=os.environ | {"TOKENMILL_FAULT": point, "PYTHONPATH": "."}, timeout=60)
    assert killed.returncode == -9
    folder = folder_at(tmp_path)
    assert check_rollups(folder, {}) == []
    snapshot = run(folder, units_of(60))
    assert snapshot.digest == run(folder_at(tmp_path / "undisturbed"), units_of(60)).digest
    assert check_rollups(folder, _digests(folder)) == []
    assert snapshot.digest == run(folder, units_of(60), allow_work=False).digest


def test_merging_takes_small_files_and_leaves_full_ones():
    sizes = {"a": RollupSize(1000, 10**6), "b": RollupSize(3000, 10**6), "c": RollupSize(9000, 10**6)}
    new = RollupSize(1000, 10**6)
    assert to_absorb(sizes, new) == ["a", "b", "c"]
    assert to_absorb(sizes | {"a": RollupSize(2001, 10**6)}, new) == []
    assert to_absorb(sizes | {"d": RollupSize(26_000, 2**25)}, new) == ["a", "b", "c"]
    assert to_absorb({"e": RollupSize(32_768, 10**6)}, RollupSize(30_000, 10**6)) == []


def test_rollups_through_s3_ask_for_few_objects(s3_server, small_rollups):
    root = s3_server.new_root()
    store = Store(root, s3_server.options)
    folder = folder_at(root, store)
    snapshot = run(folder, units_of(40))
    described = json.loads(store.read_bytes(f"{snapshot.name}.json"))
    assert run(folder_at(root, Store(root, s3_server.options)), units_of(40)).digest == described["digest"]
    assert rollup_paths(folder)
