"""The ledger: a folder's records as columns, the same as the records themselves, with rollups and without."""

from __future__ import annotations

import pickle

import pytest
from tests.stages import CONFIG, commit_of, folder_at, run, units_of

from tokenmill.errors import ManifestError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.ledger import Commits, Ledger, bytes_of, columns_of, sum_of_counts, tabulate
from tokenmill.manifests.packed import PackedRecords, pieces_of
from tokenmill.manifests.records import NO_COUNTS
from tokenmill.manifests.rollups import read_ledger
from tokenmill.manifests.snapshots import Snapshot, read_snapshot, units_table
from tokenmill.manifests.stagedir import table_bytes


def test_snapshot_of_a_hundred_records_has_its_golden_digest_and_bytes(tmp_path):
    folder = folder_at(tmp_path)
    commits = tuple(commit_of(folder, unit, number % 2) for number, unit in enumerate(units_of(100)))
    ledger = Ledger(folder)
    places = [ledger.add(commit) for commit in reversed(commits)]
    for found in (commits, _lazy(ledger, places[::-1])):
        snapshot = Snapshot(folder=folder, commits=found, parents={"ingest": "22" * 32})
        # A change here changes every digest on disk.
        assert snapshot.digest == "2e28f7f92f854ad6a22a6e29fa35ba9b15a8e91e923185712506e4d80e437fd4"
        assert sha256_hex(snapshot.description()) == "5fb3cb19921ee7ddcde3a8ad9f0ce4ad3d7374cc79f457b20bbe3bda93fac84e"
        assert (
            sha256_hex(table_bytes(units_table(found), 1))
            == "d63434bc5f9e3133b0891526a955dd2952d1567182a4269a34a21d104f3516e1"
        )


def test_ledger_gives_back_the_records_it_was_given(tmp_path):
    folder = folder_at(tmp_path)
    commits = [commit_of(folder, unit) for unit in units_of(2500)]
    ledger = Ledger(folder)
    places = [ledger.add(commit) for commit in commits]
    lazy = _lazy(ledger, places)

    assert (len(lazy), lazy[0], lazy[-1], list(lazy[7:9])) == (2500, commits[0], commits[-1], commits[7:9])
    assert lazy == commits
    assert lazy[:10] != commits[:9]
    assert lazy[:2] != commits[1:3]
    assert pickle.loads(pickle.dumps(lazy[:3])) == tuple(commits[:3])
    with pytest.raises(IndexError):
        lazy[2500]
    assert ledger.rows(places[:5]).equals(tabulate(commits[:5]))


def test_columns_say_what_the_records_say(tmp_path):
    folder = folder_at(tmp_path)
    commits = [commit_of(folder, unit) for unit in units_of(30)]
    ledger = Ledger(folder)
    lazy = _lazy(ledger, [ledger.add(commit) for commit in commits])

    assert sum_of_counts(lazy) == sum((commit.counts for commit in commits), NO_COUNTS)
    assert bytes_of(lazy) == sum(entry.bytes for commit in commits for entry in commit.files)
    assert columns_of(lazy).equals(columns_of(commits))
    names = {name for commit in commits for name in commit.totals}
    expected = {name: sum(commit.totals.get(name, 0) for commit in commits) for name in sorted(names)}
    assert Snapshot(folder=folder, commits=lazy).totals == expected
    assert sum_of_counts(()) == NO_COUNTS


def test_ledger_with_an_unlisted_number_refuses_it(tmp_path):
    folder = folder_at(tmp_path)
    bad = commit_of(folder, units_of(1)[0], totals={"seconds": 1.5})
    with pytest.raises(ManifestError, match="not whole numbers; remove it"):
        tabulate([bad])


def test_newest_takes_the_highest_attempt_of_a_unit(tmp_path):
    folder = folder_at(tmp_path)
    one, two = units_of(2)
    ledger = Ledger(folder)
    for commit in (commit_of(folder, one, 1), commit_of(folder, one, 0), commit_of(folder, two, 0)):
        ledger.add(commit)
    assert sorted(ledger.newest().select("unit", "attempt").rows()) == sorted([(one.name, 1), (two.name, 0)])


def test_reading_a_ledger_takes_the_highest_attempt_of_the_wanted_units(tmp_path):
    folder = folder_at(tmp_path)
    units = units_of(3)
    for unit, attempt in ((units[0], 0), (units[0], 1), (units[1], 0), (units[2], 0)):
        folder.publish_commit(commit_of(folder, unit, attempt))
    wanted = columns_of([commit_of(folder, unit) for unit in units[:2]], "unit")["unit"]
    ledger, found = read_ledger(folder, wanted)
    assert sorted(ledger.table.select("unit", "attempt").rows()) == sorted([(units[0].name, 1), (units[1].name, 0)])
    assert (sorted(found.loose), found.sizes, found.bad) == ([0, 1], {}, [])


def test_old_snapshot_is_read_with_the_attempts_it_names(tmp_path, small_rollups):
    folder = folder_at(tmp_path)
    units = units_of(40)
    before = run(folder, units)
    after = run(folder, units, retry_failed=True)
    assert {commit.attempt for commit in after.commits} == {0, 1}
    for snapshot in (before, after):
        again = read_snapshot(folder, snapshot.digest)
        assert (again.digest, again.commits) == (snapshot.digest, snapshot.commits)


def test_snapshot_whose_record_is_gone_or_changed_is_refused(tmp_path, small_rollups, monkeypatch):
    folder = folder_at(tmp_path)
    units = units_of(40)
    snapshot = run(folder, units)
    name = folder.at(snapshot.commits[3].record_name)
    folder.store.delete(name)
    with pytest.raises(Exception, match=units[3].name):
        read_snapshot(folder, snapshot.digest)
    other = commit_of(folder, units[3], totals={"bytes": 1})
    monkeypatch.setattr("tests.stages.commit_of", lambda *_, **__: other)
    run(folder, units)  # it is another record now; the old snapshot has lost one
    with pytest.raises(ManifestError, match=f"{units[3].name}.*not the record that snapshot"):
        read_snapshot(folder, snapshot.digest)


def test_record_of_other_inputs_under_a_units_name_is_refused(tmp_path):
    folder = folder_at(tmp_path)
    one, two = units_of(2)
    folder.publish_commit(commit_of(folder, two, unit=one.name))
    with pytest.raises(ManifestError, match="records other inputs"):
        run(folder, [one])


def test_packed_records_come_back_in_any_order():
    records = [f"record {number}".encode() * (number % 7) for number in range(1000)]
    packed = PackedRecords()
    packed.extend(records[:100])
    packed.extend([])
    packed.extend(records[100:])
    assert [packed[place] for place in reversed(range(1000))] == records[::-1]
    with pytest.raises(IndexError):
        packed[1000]


def test_pieces_keep_their_limits():
    assert pieces_of([], most=2, most_bytes=10) == []
    assert pieces_of([1, 1, 1], most=2, most_bytes=10) == [(0, 2), (2, 3)]
    assert pieces_of([6, 6, 20, 1], most=9, most_bytes=10) == [(0, 1), (1, 2), (2, 3), (3, 4)]


def _lazy(ledger: Ledger, places: list[int]) -> Commits:
    import numpy as np

    return Commits(ledger, np.array(places, dtype=np.uint32))


def test_config_of_these_tests_is_the_golden_one():
    assert CONFIG.digest.startswith("912828ef9c40070a")
