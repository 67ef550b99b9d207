"""Parquet tables as a source: bytes or texts in a column, all other columns as metadata."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from tests.tiny import picture

from tokenmill.errors import RecipeError, RunError
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.dispatch import RunOptions
from tokenmill.pipelines.ingest import ingest_work
from tokenmill.pipelines.runner import run_stage
from tokenmill.pipelines.sources.source import IndexRow, open_source


def _rows(folder: Path, **options: object) -> list[IndexRow]:
    source = open_source("s", {"kind": "parquet", "url": str(folder), **options})
    return [row for file in source.files() for row in source.index(file)]


def _table(folder: Path, **columns: list) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(columns).write_parquet(folder / "part-0.parquet")
    return folder


def test_pictures_in_a_column_come_with_caption_key_and_metadata(tmp_path):
    _table(
        tmp_path,
        key=["a", "b"],
        picture=[picture(0), picture(1)],
        caption=["first", None],
        width=[64, 65],
    )
    rows = _rows(tmp_path, column="picture")
    assert [(row.key, row.caption, row.payload) for row in rows] == [
        ("a", "first", picture(0)),
        ("b", None, picture(1)),
    ]
    assert json.loads(rows[1].metadata) == {"caption": None, "key": "b", "width": 65}


def test_texts_in_a_column_are_packed_and_read_back(tmp_path):
    folder = _table(tmp_path / "raw", body=["Hello ünï", "World"])
    store = open_store(str(tmp_path / "root"))
    settings = {"kind": "parquet", "url": str(folder), "column": "body", "modality": "text"}
    (((snapshot,)),) = run_stage(
        "ingest", [ingest_work(store, "s", settings, unit_bytes=2**30)], RunOptions(quiet=True)
    )
    (commit,) = snapshot.commits
    rows = snapshot.folder.read_rows(commit)
    assert rows["key"].to_list() == ["part-0.parquet#0", "part-0.parquet#1"]
    texts = [
        store.read_range(snapshot.folder.at(commit.data.name), offset, length).decode()
        for offset, length in rows.select("offset", "length").iter_rows()
    ]
    assert texts == ["Hello ünï", "World"]


def test_row_without_a_sample_fails_with_its_reason(tmp_path):
    _table(tmp_path, picture=[b"", None, picture(0)])
    one, two, three = _rows(tmp_path, column="picture")
    assert (one.error.reason, two.error.reason, three.error) == ("no_image", "no_image", None)


def test_table_without_the_column_stops_the_run_and_names_those_it_has(tmp_path):
    _table(tmp_path, image=[b"x"])
    with pytest.raises(RunError, match=r"no column 'picture'; it has: image"):
        _rows(tmp_path, column="picture")
    with pytest.raises(RecipeError, match=r"sources\.s"):
        _rows(tmp_path)


def test_table_of_several_batches_keeps_its_order(tmp_path):
    _table(tmp_path, body=[f"text {number}" for number in range(1000)])
    rows = _rows(tmp_path, column="body", modality="text")
    assert [row.payload.decode() for row in rows] == [f"text {number}" for number in range(1000)]
    assert len({row.key for row in rows}) == 1000


def test_values_that_json_does_not_know_become_text(tmp_path):
    import datetime

    _table(tmp_path, body=["x"], when=[datetime.date(2026, 1, 2)], raw=[b"\x00\xff"])
    (row,) = _rows(tmp_path, column="body", modality="text")
    assert json.loads(row.metadata)["when"] == "2026-01-02"
