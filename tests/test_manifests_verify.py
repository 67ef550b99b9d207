"""Verify finds every change to what was written, names the file, and leaves what is well alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save

from tokenmill.cli import main
from tokenmill.errors import ManifestError
from tokenmill.manifests.archive import ArchiveWriter
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.records import Commit, Counts, FileEntry
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageDir, parse_table, stage_dir_at, table_bytes
from tokenmill.manifests.storage import open_store
from tokenmill.manifests.verify import examine, verify


def _faults(root: Path, path: str = "", *, deep: bool = True) -> set[str]:
    return {fault.path for fault in verify(open_store(str(root)), path, deep=deep)}


def _folders(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.rglob("config.json"))


def _written(folder: Path) -> list[Path]:
    """Everything in a stage folder that has to stay as it is."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and "logs" not in path.parts)


def _is_snapshot_table(path: Path) -> bool:
    return path.parent.name == "snapshots" and path.suffix == ".parquet"


@pytest.mark.parametrize("deep", [False, True])
def test_verify_of_what_a_run_left_finds_nothing(finished, deep):
    findings = examine(open_store(str(finished.root)), "", deep=deep)
    assert findings.faults == [] and findings.notes == []
    assert findings.folders == len(_folders(finished.root)) > 15
    assert findings.records == len(list(finished.root.rglob("commits/*.json")))


def test_verify_of_each_folder_alone_finds_nothing(finished):
    for folder in _folders(finished.root):
        assert verify(open_store(str(folder)), "", deep=True) == []
        assert verify(open_store(str(finished.root)), str(folder.relative_to(finished.root)), deep=True) == []


def test_verify_deep_after_a_flipped_byte_names_the_file_whichever_it_is(finished, tmp_path):
    root = finished.copy(tmp_path / "root")
    for folder in _folders(root):
        for path in _written(folder):
            data = path.read_bytes()
            for position in (len(data) // 2, len(data) - 2):
                path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
                found = _faults(folder)
                harmless = _is_snapshot_table(path) and _same_values(path, data)
                assert str(path.relative_to(folder)) in found or harmless, (path, position, found)
            path.write_bytes(data)
        assert _faults(folder) == set()


def test_verify_shallow_after_cutting_off_a_byte_names_the_file_whichever_it_is(finished, tmp_path):
    root = finished.copy(tmp_path / "root")
    for folder in _folders(root):
        for path in _written(folder):
            data = path.read_bytes()
            path.write_bytes(data[:-2])
            assert str(path.relative_to(folder)) in _faults(folder, deep=False), path
            path.write_bytes(data)


def test_verify_shallow_after_removing_a_file_names_it_whichever_it_is(finished, tmp_path):
    """Without its last-written description a snapshot or plan was simply never finished; that is no fault."""
    root = finished.copy(tmp_path / "root")
    for folder in _folders(root):
        for path in _written(folder):
            is_last = path.name == "plan.json" or (path.parent.name == "snapshots" and path.suffix == ".json")
            data = path.read_bytes()
            path.unlink()
            found = examine(open_store(str(folder)), "", deep=False)
            named = {fault.path for fault in found.faults} if not is_last else {note.path for note in found.notes}
            expected = path.with_suffix(".parquet") if is_last and path.name != "plan.json" else path
            assert str(expected.relative_to(folder)) in named, path
            assert not (is_last and found.faults)
            path.write_bytes(data)


def test_verify_command_exits_0_when_clean_and_1_naming_the_file(finished, tmp_path, capsys):
    root = finished.copy(tmp_path / "root")
    assert main(["verify", "--deep", str(root)]) == 0
    archive = next(root.glob("tokenize/scenes/*/*.tar"))
    archive.write_bytes(archive.read_bytes().replace(b'"segments"', b'"Segments"', 1))
    assert main(["verify", str(root)]) == 0
    assert main(["verify", "--deep", str(root)]) == 1
    assert archive.name in capsys.readouterr().out


def test_verify_of_a_file_that_no_record_names_reports_a_note_only(finished, tmp_path):
    root = finished.copy(tmp_path / "root")
    folder = next(root.glob("tokenize/text/*"))
    (folder / "left-by-a-killed-run-01234567.tar").write_bytes(b"half")
    findings = examine(open_store(str(root)), "", deep=True)
    assert findings.faults == []
    assert [note.path for note in findings.notes] == [f"{folder.relative_to(root)}/left-by-a-killed-run-01234567.tar"]


def test_verify_where_nothing_lies_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ManifestError, match="holds no stage folder"):
            verify(open_store(str(place)), "", deep=False)


def test_verify_of_a_changed_setting_names_the_description(finished, tmp_path):
    root = finished.copy(tmp_path / "root")
    path = next(root.glob("select/scenes/*/config.json"))
    path.write_text(path.read_text().replace("min_side_px >= 48", "min_side_px >= 47"))
    assert _faults(root, deep=False) == {str(path.relative_to(root))}


def test_verify_of_a_record_from_another_folder_names_the_record(finished, tmp_path):
    root = finished.copy(tmp_path / "root")
    one, two = sorted(root.glob("score/scenes/*"))[:2]
    record = next(one.glob("commits/*.json"))
    shutil.copy(record, two / "commits" / record.name)
    assert str((two / "commits" / record.name).relative_to(root)) in _faults(root, deep=False)


# What a writer could get wrong while its digests are right: the unit is made again with the change, and so are its
# record and the snapshot.


def _rewritten(finished, tmp_path: Path, change: Callable[[StageDir, Commit], Commit], stage: str = "tokenize") -> Path:
    """Copy a folder with its first unit changed; records and snapshot agree with the change."""
    source = next(finished.root.glob(f"{stage}/scenes/*"))
    folder_path = Path(shutil.copytree(source, tmp_path / "folder"))
    folder = stage_dir_at(open_store(str(folder_path)), "")
    records = sorted((folder_path / "commits").iterdir())
    commits = [Commit.from_bytes(path.read_bytes(), path.name) for path in records]
    commits[0] = change(folder, commits[0])
    records[0].write_bytes(commits[0].to_bytes())
    shutil.rmtree(folder_path / "snapshots")
    Snapshot(folder=folder, commits=tuple(commits)).publish()
    return folder_path


def _with_rows(folder: StageDir, commit: Commit, rows: pl.DataFrame, schema: int = 1) -> Commit:
    entry = folder.publish_bytes(commit.unit, ".parquet", table_bytes(rows, schema), "rows")
    return replace(commit, files=tuple(entry if file.role == "rows" else file for file in commit.files))


def _same_values(path: Path, before: bytes) -> bool:
    try:
        return parse_table(path.read_bytes()).equals(parse_table(before))
    except ManifestError:
        return False


def _only_fault(folder: Path) -> str:
    (fault,) = verify(open_store(str(folder)), "", deep=True)
    return str(fault)


def test_verify_of_a_unit_rewritten_unchanged_finds_nothing(finished, tmp_path):
    folder = _rewritten(finished, tmp_path, lambda folder, commit: _with_rows(folder, commit, folder.read_rows(commit)))
    assert verify(open_store(str(folder)), "", deep=True) == []


@pytest.mark.parametrize("column", ["codes_offset", "codes_length", "text_offset", "json_length"])
def test_verify_deep_of_an_index_with_a_wrong_place_names_the_member(finished, tmp_path, column):
    def change(folder: StageDir, commit: Commit) -> Commit:
        rows = folder.read_rows(commit)
        return _with_rows(folder, commit, rows.with_columns(pl.col(column) + (pl.int_range(pl.len()) == 0).cast(int)))

    assert ".tar: member " in _only_fault(_rewritten(finished, tmp_path, change))


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        (pl.col("num_codes") + 1, "values, its index counts"),
        (pl.col("num_text") - 1, "its index counts"),
        (pl.col("segments").str.replace("caption", "body"), "segments are not those of its index"),
        ((pl.lit("another") + pl.col("key")).alias("key"), "its index does not name it"),
    ],
)
def test_verify_deep_of_an_index_that_does_not_fit_its_archive_says_so(finished, tmp_path, expression, told):
    def change(folder: StageDir, commit: Commit) -> Commit:
        return _with_rows(folder, commit, folder.read_rows(commit).with_columns(expression))

    folder = _rewritten(finished, tmp_path, change)
    assert any(told in str(fault) for fault in verify(open_store(str(folder)), "", deep=True))
    assert verify(open_store(str(folder)), "", deep=False) == []


def test_verify_of_a_table_with_a_row_too_few_names_it(finished, tmp_path):
    folder = _rewritten(finished, tmp_path, lambda f, commit: _with_rows(f, commit, f.read_rows(commit)[:-1]), "select")
    (fault,) = verify(open_store(str(folder)), "", deep=False)
    assert "rows, its record counts" in fault.what and fault.path.endswith(".parquet")


def test_verify_of_a_table_of_another_schema_names_it(finished, tmp_path):
    folder = _rewritten(finished, tmp_path, lambda f, commit: _with_rows(f, commit, f.read_rows(commit), 2), "select")
    assert "has schema 2, its folder says 1" in _only_fault(folder)


def test_verify_deep_of_reasons_that_are_counted_wrong_names_the_table(finished, tmp_path):
    def change(folder: StageDir, commit: Commit) -> Commit:
        counts = commit.counts
        return replace(commit, counts=replace(counts, kept=counts.kept - 1, out=counts.out - 1, dropped={"other": 1}))

    assert "drop_reason counts" in _only_fault(_rewritten(finished, tmp_path, change, "select"))


def test_verify_deep_of_packed_pictures_compares_their_digests(finished, tmp_path):
    folder_path = Path(shutil.copytree(next(finished.root.glob("ingest/photos/*")), tmp_path / "folder"))
    folder = stage_dir_at(open_store(str(folder_path)), "")
    ((unit, attempt),) = folder.record_names().items()
    commit = folder.read_commit(unit, attempt)
    rows = folder.read_rows(commit)
    with ArchiveWriter(folder_path / "other.tar") as writer:
        for row in rows.iter_rows(named=True):
            writer.add(row["key"], {row["extension"]: bytes(row["length"]), "json": b"{}"})
    other = FileEntry(name="other.tar", role="data", bytes=writer.bytes, sha256=writer.sha256)
    changed = replace(commit, files=(other, commit.rows))
    (folder_path / commit.record_name).write_bytes(changed.to_bytes())
    shutil.rmtree(folder_path / "snapshots")
    assert "sha256 differs from its index" in str(verify(folder.store, "", deep=True)[0])


def test_verify_of_a_later_attempt_wants_the_record_it_replaced(finished, tmp_path):
    folder_path = Path(shutil.copytree(next(finished.root.glob("select/scenes/*")), tmp_path / "folder"))
    record = sorted((folder_path / "commits").iterdir())[0]
    first = Commit.from_bytes(record.read_bytes(), record.name)
    later = replace(first, attempt=1, predecessor=sha256_hex(record.read_bytes()))
    (folder_path / later.record_name).write_bytes(later.to_bytes())
    assert _faults(folder_path) == set()
    (folder_path / later.record_name).write_bytes(replace(later, predecessor="0" * 64).to_bytes())
    assert _faults(folder_path) == {first.record_name}


def test_verify_of_a_snapshot_that_tells_wrong_totals_names_it(finished, tmp_path):
    folder = Path(shutil.copytree(next(finished.root.glob("select/scenes/*")), tmp_path / "folder"))
    path = next(folder.glob("snapshots/*.json"))
    value = json.loads(path.read_text())
    value["counts"]["kept"] += 1
    path.write_text(json.dumps(value))
    assert _faults(folder) == {str(path.relative_to(folder))}


def test_verify_of_a_checkpoint_names_the_file_that_changed(tmp_path):
    folder = tmp_path / "checkpoints" / "run" / "step-00000010"
    folder.mkdir(parents=True)
    data = save({"a/weight": np.arange(3, dtype=np.float32)})
    name = "tensors-00-01234567.safetensors"
    (folder / name).write_bytes(data)
    entry = FileEntry(name=name, role="tensors", bytes=len(data), sha256=sha256_hex(data))
    record = {"schema": 1, "step": 10, "files": [entry.to_json()]}
    (folder / "checkpoint.json").write_text(json.dumps(record))
    (tmp_path / "checkpoints" / "run" / "export").mkdir()
    (tmp_path / "checkpoints" / "run" / "export" / "config.json").write_text('{"model_type": "emu3"}')
    assert _faults(tmp_path) == set()
    (folder / entry.name).write_bytes(data[:-1] + b"!")
    assert _faults(tmp_path, deep=False) == set()
    assert _faults(tmp_path) == {f"checkpoints/run/step-00000010/{entry.name}"}
    (folder / entry.name).write_bytes(b"?" * len(data))
    assert _faults(tmp_path, deep=False) == {f"checkpoints/run/step-00000010/{entry.name}"}
    (folder / entry.name).write_bytes(data)
    (folder / "checkpoint.json").write_text(json.dumps(record)[:-5])
    assert _faults(tmp_path, deep=False) == {"checkpoints/run/step-00000010/checkpoint.json"}


def test_counts_of_a_record_that_do_not_add_up_name_the_record(finished, tmp_path):
    folder = Path(shutil.copytree(next(finished.root.glob("score/scenes/*")), tmp_path / "folder"))
    record = sorted((folder / "commits").iterdir())[0]
    value = json.loads(record.read_text())
    value["counts"]["kept"] += 1
    record.write_text(json.dumps(value))
    assert f"commits/{record.name}" in _faults(folder, deep=False)
    assert Counts(rows_in=1, kept=1, out=1).rows_in == 1


@pytest.mark.s3
def test_verify_on_an_object_store_names_the_file_that_changed(finished, s3_server):
    store = open_store(s3_server.new_root(), s3_server.options)
    folder = next(finished.root.glob("tokenize/scenes/*"))
    for path in _written(folder):
        store.put(f"copy/{path.relative_to(folder)}", path.read_bytes())
    assert verify(store, "", deep=True) == []
    name = next(entry.path for entry in store.files("copy") if entry.path.endswith(".tar"))
    data = store.read_bytes(name)
    store.put(name, data[:600] + b"\xff" + data[601:])
    assert {fault.path for fault in verify(store, "copy", deep=True)} == {name}
    store.delete(name)
    assert [fault.what for fault in verify(store, "copy", deep=False)] == ["is missing"]
