"""Commit records, snapshots and tables: the bytes they have, what they refuse."""

from __future__ import annotations

import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.errors import ManifestError, SchemaError
from tokenmill.manifests.identity import canonical_json, digest_of, digest_of_rows, rows_digest, safe_name
from tokenmill.manifests.records import Commit, Counts, FileEntry, InputRef, unit_digest, unit_name
from tokenmill.manifests.snapshots import Snapshot, read_snapshot, snapshot_names
from tokenmill.manifests.stagedir import StageConfig, StageDir, parse_table, read_table, stage_dir_at, table_bytes
from tokenmill.manifests.storage import Store, open_store

CONFIG = StageConfig(stage="score", version=3, schema=1, settings={"when": "width_px > 3"}, fingerprints={"a": "f0"})
INPUTS = (
    InputRef(name="shards/00007.tar", digest="ab" * 32, start=10, end=20, unit_of_range="rows"),
    InputRef(name="kept", digest="cd" * 32),
)
COMMIT = Commit(
    stage="score",
    source="photos",
    config=CONFIG.digest,
    unit=unit_name(INPUTS),
    inputs=INPUTS,
    counts=Counts(rows_in=10, kept=7, out=7, dropped={"small": 1}, failed={"truncated": 2}),
    files=(FileEntry(name="x-01234567.parquet", role="rows", bytes=99, sha256="ef" * 32),),
    digests={"values": "11" * 32},
    totals={"bytes": 4096},
)
# A change here is a change of the format on disk: raise the schema and tell it in the changelog.
GOLDEN_RECORD = """{
 "attempt": 0,
 "config": "%(config)s",
 "counts": {
  "dropped": {
   "small": 1
  },
  "failed": {
   "truncated": 2
  },
  "in": 10,
  "kept": 7,
  "out": 7
 },
 "digests": {
  "values": "%(values)s"
 },
 "files": [
  {
   "bytes": 99,
   "name": "x-01234567.parquet",
   "role": "rows",
   "sha256": "%(sha256)s"
  }
 ],
 "inputs": [
  {
   "digest": "%(first)s",
   "end": 20,
   "name": "shards/00007.tar",
   "of": "rows",
   "start": 10
  },
  {
   "digest": "%(second)s",
   "name": "kept"
  }
 ],
 "predecessor": null,
 "schema": 1,
 "source": "photos",
 "stage": "score",
 "totals": {
  "bytes": 4096
 },
 "unit": "00007-00000010-5240f82bfa3cb546",
 "unit_digest": "%(unit)s"
}
"""


def test_commit_record_has_its_golden_bytes():
    expected = GOLDEN_RECORD % {
        "config": "912828ef9c40070aa3ea71e8fbc29d021a3f6e166f2600e375aa09280cf5ba89",
        "values": "11" * 32,
        "sha256": "ef" * 32,
        "first": "ab" * 32,
        "second": "cd" * 32,
        "unit": "5240f82bfa3cb546d2bf2f98249c37ac60e42e186d87b2cb5792cbca8eb56b70",
    }
    assert COMMIT.to_bytes().decode() == expected


def test_snapshot_digest_is_golden(tmp_path):
    folder = StageDir(store=open_store(str(tmp_path)), source="photos", config=CONFIG)
    snapshot = Snapshot(folder=folder, commits=(COMMIT,), parents={"ingest": "22" * 32})
    assert snapshot.digest == "f81b3c5a6a1163e86ba93e2558beb2f673b4012ec5c6cc4b00e2900ff89d5c44"


def test_commit_record_read_back_is_equal():
    assert Commit.from_bytes(COMMIT.to_bytes(), "here") == COMMIT


def test_commit_record_of_a_newer_schema_is_refused_by_name():
    value = json.loads(COMMIT.to_bytes()) | {"schema": 2}
    with pytest.raises(SchemaError, match=r"commits/u\.0\.json: schema 2"):
        Commit.from_bytes(json.dumps(value).encode(), "commits/u.0.json")


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": [{"name": "other.tar", "digest": "ab" * 32}]},
        {"counts": {"in": 10, "kept": 8, "dropped": {"small": 1}, "failed": {"truncated": 2}, "out": 7}},
        {"files": [{"name": "x"}]},
        {"unit_digest": "00" * 32},
        {"schema": "1"},
        {"counts": {"in": 0, "kept": 0, "dropped": None, "failed": {}, "out": 0}},
    ],
)
def test_commit_record_that_was_tampered_with_is_refused(change):
    value = json.loads(COMMIT.to_bytes()) | change
    with pytest.raises(ManifestError, match="here"):
        Commit.from_bytes(json.dumps(value).encode(), "here")


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"\xff\xfe", COMMIT.to_bytes()[:-40]])
def test_commit_record_that_is_none_is_refused(data):
    with pytest.raises(ManifestError, match="here"):
        Commit.from_bytes(data, "here")


def test_commit_record_under_another_name_is_refused(tmp_path):
    folder = _folder(tmp_path)
    folder.store.put(folder.at("commits/other.0.json"), COMMIT.to_bytes())
    with pytest.raises(ManifestError, match=r"other\.0\.json"):
        folder.read_commit("other", 0)


@given(
    kept=st.integers(0, 99),
    dropped=st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(0, 99)),
    failed=st.dictionaries(st.sampled_from(["x", "y"]), st.integers(0, 99)),
    off=st.integers(-3, 3),
)
def test_counts_add_up_or_are_refused(kept, dropped, failed, off):
    total = kept + sum(dropped.values()) + sum(failed.values())
    if off:
        with pytest.raises(ManifestError):
            Counts(rows_in=total + off, kept=kept, out=kept, dropped=dropped, failed=failed)
    else:
        counts = Counts(rows_in=total, kept=kept, out=kept, dropped=dropped, failed=failed)
        double = counts + counts
        assert double.rows_in == 2 * total
        assert sum(double.dropped.values()) == 2 * sum(dropped.values())


def test_unit_name_follows_every_part_of_its_inputs():
    variants = [
        INPUTS,
        INPUTS[:1],
        INPUTS[::-1],
        (InputRef(name="shards/00007.tar", digest="ab" * 32, start=10, end=21, unit_of_range="rows"), INPUTS[1]),
        (InputRef(name="shards/00007.tar", digest="ac" * 32, start=10, end=20, unit_of_range="rows"), INPUTS[1]),
        (InputRef(name="shards/00007.tar", digest="ab" * 32), INPUTS[1]),
    ]
    assert len({unit_name(inputs) for inputs in variants}) == len(variants)
    assert len({unit_digest(inputs) for inputs in variants}) == len(variants)


@pytest.mark.parametrize("name", ["a/b/00001.tar", "../../etc/passwd", "ünï.jpg", "", ".hidden", "x" * 500, "a b\nc"])
def test_safe_name_is_a_plain_file_name(name):
    safe = safe_name(name)
    assert safe and len(safe) <= 48
    assert all(c.isascii() and (c.isalnum() or c in "_-") for c in safe)


def test_digest_of_equal_values_is_equal_whatever_the_order_of_keys():
    assert digest_of({"a": 1, "b": [1.5, None]}) == digest_of({"b": [1.5, None], "a": 1})
    assert canonical_json({"b": 1, "a": "ü"}) == '{"a":"ü","b":1}'


CELLS = st.fixed_dictionaries(
    {
        "text": st.none() | st.text(st.characters(codec="utf-8")),
        "large": st.none() | st.floats(width=64),
        "small": st.none() | st.floats(width=32),
        "number": st.none() | st.integers(0, 2**64 - 1),
        "flag": st.none() | st.booleans(),
    }
)
KINDS = {"text": pl.String, "large": pl.Float64, "small": pl.Float32, "number": pl.UInt64, "flag": pl.Boolean}


@given(st.lists(CELLS, max_size=20))
def test_rows_digest_by_column_is_the_digest_of_rows_one_by_one(rows):
    frame = pl.DataFrame(rows, schema=KINDS)
    assert rows_digest(frame) == digest_of_rows(frame.columns, frame.iter_rows())


def test_rows_digest_of_lists_and_of_nothing_is_the_digest_of_rows():
    for frame in (pl.DataFrame({"l": [[1, 2], None]}), pl.DataFrame({"n": [None, None]}), pl.DataFrame()):
        assert rows_digest(frame) == digest_of_rows(frame.columns, frame.iter_rows())


def test_rows_digest_covers_values_not_parquet_bytes():
    frame = pl.DataFrame({"key": ["a", "b"], "score": [1.0, float("nan")]})
    again = parse_table(table_bytes(pl.concat([frame[:1], frame[1:]]), 1))
    assert rows_digest(frame) == rows_digest(again)
    assert rows_digest(frame) != rows_digest(frame[::-1])
    assert rows_digest(frame) != rows_digest(frame.rename({"score": "other"}))


def test_settings_of_another_version_or_fingerprint_are_another_folder(tmp_path):
    store = open_store(str(tmp_path))
    changes = [{}, {"version": 4}, {"schema": 2}, {"settings": {"when": ""}}, {"fingerprints": {"a": "f1"}}]
    values = [
        {"stage": "score", "version": 3, "schema": 1, "settings": dict(CONFIG.settings), "fingerprints": {"a": "f0"}}
        | change
        for change in changes
    ]
    paths = {StageDir(store=store, source="photos", config=StageConfig(**value)).path for value in values}
    assert len(paths) == len(changes)


def test_second_record_of_a_unit_gives_way_to_the_first(tmp_path):
    folder = _folder(tmp_path)
    first = folder.publish_commit(COMMIT)
    late = Commit.from_bytes(COMMIT.to_bytes().replace(b'"bytes": 4096', b'"bytes": 4097'), "late")
    assert folder.publish_commit(late) == first == COMMIT
    assert folder.record_names() == {COMMIT.unit: 0}


def test_record_names_gives_the_highest_attempt(tmp_path):
    folder = _folder(tmp_path)
    for attempt in (0, 2, 10, 1):
        folder.store.put(folder.at(f"commits/u.{attempt}.json"), b"{}")
    folder.store.put(folder.at("commits/README"), b"not a record")
    assert folder.record_names() == {"u": 10}


def test_snapshot_read_back_is_equal(tmp_path):
    snapshot = _published(tmp_path)
    (name,) = snapshot_names(snapshot.folder)
    again = read_snapshot(stage_dir_at(snapshot.folder.store, snapshot.folder.path), name)
    assert (again.digest, again.commits, again.parents) == (snapshot.digest, snapshot.commits, snapshot.parents)
    assert again.counts == snapshot.counts


def test_snapshot_whose_record_changed_is_refused_and_names_the_record(tmp_path):
    snapshot = _published(tmp_path)
    path = snapshot.folder.at(COMMIT.record_name)
    changed = snapshot.folder.store.read_bytes(path).replace(b'"bytes": 4096', b'"bytes": 4097')
    snapshot.folder.store.put(path, changed)
    with pytest.raises(ManifestError, match=COMMIT.unit):
        read_snapshot(snapshot.folder, snapshot.digest)


def test_snapshot_of_a_newer_schema_is_refused_by_name(tmp_path):
    snapshot = _published(tmp_path)
    path = f"{snapshot.name}.json"
    value = json.loads(snapshot.folder.store.read_bytes(path)) | {"schema": 99}
    snapshot.folder.store.put(path, json.dumps(value).encode())
    with pytest.raises(SchemaError, match=snapshot.digest[:16]):
        read_snapshot(snapshot.folder, snapshot.digest)


def test_snapshot_with_units_in_another_order_is_another_snapshot(tmp_path):
    folder = _folder(tmp_path)
    other = Commit.from_bytes(COMMIT.to_bytes().replace(b'"photos"', b'"photos"'), "x")
    second = Commit(**{f: getattr(other, f) for f in other.__dataclass_fields__} | {"attempt": 1, "predecessor": "0"})
    one = Snapshot(folder=folder, commits=(COMMIT, second))
    two = Snapshot(folder=folder, commits=(second, COMMIT))
    assert one.digest != two.digest
    assert one.digest == Snapshot(folder=folder, commits=(COMMIT, second), parents={"ingest": "1"}).digest


def test_folder_description_that_was_tampered_with_is_refused(tmp_path):
    folder = _folder(tmp_path)
    folder.describe()
    path = folder.at("config.json")
    assert stage_dir_at(folder.store, folder.path).config == CONFIG
    folder.store.put(path, folder.store.read_bytes(path).replace(b"width_px > 3", b"width_px > 4"))
    with pytest.raises(ManifestError, match=r"config\.json"):
        stage_dir_at(folder.store, folder.path)


def test_folder_without_a_description_is_refused_and_named(tmp_path):
    with pytest.raises(ManifestError, match="no/such/folder"):
        stage_dir_at(open_store(str(tmp_path)), "no/such/folder")


def test_table_of_equal_rows_has_equal_bytes():
    frame = pl.DataFrame({"key": ["a", "b"], "list": [["x"], []], "hash": pl.Series([2**63, 0], dtype=pl.UInt64)})
    assert table_bytes(frame, 1) == table_bytes(pl.concat([frame[:1], frame[1:]]), 1)
    assert parse_table(table_bytes(frame, 1)).equals(frame)
    assert parse_table(table_bytes(frame[:0], 1)).schema == frame.schema


def test_table_with_any_byte_flipped_is_refused_or_reads_the_same_values():
    frame = pl.DataFrame({"key": ["a", "b", "c"], "value": [1, 2, None]})
    data = table_bytes(frame, 1)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        try:
            found = parse_table(bytes(damaged), ["key", "value"])
        except ManifestError:
            continue
        assert found.equals(frame), f"byte {position}"


def test_table_that_is_not_what_its_record_says_is_refused_by_name(tmp_path):
    folder = _folder(tmp_path)
    entry = folder.publish_bytes("unit", ".parquet", table_bytes(pl.DataFrame({"a": [1]}), 1), "rows")
    with pytest.raises(ManifestError, match=entry.name):
        read_table(folder.store, folder.at(entry.name), sha256="00" * 32)
    with pytest.raises(ManifestError, match=f"{entry.name}: a table without column 'b'"):
        read_table(folder.store, folder.at(entry.name), ["b"])


def _folder(tmp_path: object) -> StageDir:
    store: Store = open_store(str(tmp_path))
    return StageDir(store=store, source="photos", config=CONFIG)


def _published(tmp_path: object) -> Snapshot:
    folder = _folder(tmp_path)
    folder.describe()
    folder.publish_commit(COMMIT)
    snapshot = Snapshot(folder=folder, commits=(COMMIT,), parents={"ingest": "22" * 32})
    snapshot.publish()
    return snapshot
