"""Inspect tells what lies at a path, whichever kind of thing it is, and shows a sample's text and picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests import tiny

from tokenmill.cli import main
from tokenmill.errors import ManifestError
from tokenmill.inspection import inspect_path


def _only(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[0]


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        ("", "folder"),
        ("score", "folder"),
        ("tokenize/scenes/*", "stage"),
        ("tokenize/scenes/*/commits/*.json", "record"),
        ("tokenize/scenes/*/snapshots/*.json", "snapshot"),
        ("tokenize/scenes/*/snapshots/*.parquet", "table"),
        ("tokenize/scenes/*/*.parquet", "table"),
        ("tokenize/scenes/*/*.tar", "archive"),
        ("tokenize/scenes/*/config.json", "settings"),
        ("ingest/photos/*/*.tar", "archive"),
        ("plans/pretrain/*", "plan"),
        ("plans/pretrain/*/plan.json", "plan"),
    ],
)
def test_inspect_knows_what_it_is_and_tells_it_as_text_and_json(finished, pattern, kind):
    path = _only(finished.root, pattern) if pattern else finished.root
    found, text = inspect_path(str(path))
    assert found["kind"] == kind
    assert json.loads(json.dumps(found, default=str))["kind"] == kind
    assert f"kind: {kind}" in text


def test_inspect_of_a_token_sample_shows_its_caption_and_its_picture(finished, tmp_path):
    archive = _only(finished.root, "tokenize/scenes/*/00000-*.tar")
    key = inspect_path(str(archive))[0]["keys"][0]
    found, _ = inspect_path(str(archive), key, picture_to=tmp_path)
    assert [segment["says"] for segment in found["segments"] if "text" in segment] == found["captions"]
    (vision,) = (segment for segment in found["segments"] if "vision" in segment)
    _, height, width = vision["vision"]
    picture = np.asarray(Image.open(vision["picture"]))
    assert picture.shape == (8 * height, 8 * width, 3)
    assert picture.std() > 5
    assert found["num_codes"] == height * width


def test_inspect_of_a_token_clip_shows_frames_beside_each_other(finished, tmp_path):
    archive = _only(finished.root, "tokenize/clips/*/*.tar")
    key = inspect_path(str(archive))[0]["keys"][0]
    found, _ = inspect_path(str(archive), key, picture_to=tmp_path)
    (vision,) = (segment for segment in found["segments"] if "vision" in segment)
    t, height, width = vision["vision"]
    assert Image.open(vision["picture"]).size == (8 * width * min(8, 4 * t), 8 * height)


def test_inspect_of_a_packed_picture_gives_it_back_as_it_was(finished, tmp_path):
    archive = _only(finished.root, "ingest/photos/*/*.tar")
    found, _ = inspect_path(str(archive), "photo.1.png", picture_to=tmp_path)
    assert Path(found["picture"]).read_bytes() == (finished.data / "photos" / "photo.1.png").read_bytes()
    assert json.loads(found["json"])["file"] == "photo.1.png"


def test_inspect_of_a_raw_shard_needs_no_index(finished, tmp_path):
    found, _ = inspect_path(str(finished.data / "scenes" / "00000.tar"))
    assert (found["kind"], found["num_samples"]) == ("archive", 6)
    found, _ = inspect_path(str(finished.data / "scenes" / "00000.tar"), "00000001", picture_to=tmp_path)
    assert Path(found["picture"]).read_bytes() == tiny.picture(1)


def test_inspect_of_a_row_in_a_table_shows_why_a_sample_failed(finished):
    tables = sorted(finished.root.glob("score/scenes/*/00000-*.parquet"))
    rows = [inspect_path(str(table), "00000004")[0]["row"] for table in tables if _holds(table, "00000004")]
    assert rows and {row["fail_reason"] for row in rows} == {"truncated"}


def test_inspect_of_a_key_that_is_not_there_says_so(finished):
    for pattern in ("tokenize/scenes/*/*.tar", "ingest/photos/*/*.tar", "tokenize/scenes/*/*.parquet"):
        with pytest.raises(ManifestError, match="no sample 'absent'"):
            inspect_path(str(_only(finished.root, pattern)), "absent")
    with pytest.raises(ManifestError, match="no sample 'absent'"):
        inspect_path(str(finished.data / "scenes" / "00000.tar"), "absent")
    with pytest.raises(ManifestError, match="--key wants"):
        inspect_path(str(finished.root), "absent")


def test_inspect_of_nothing_or_of_something_damaged_is_one_line_and_exit_code_1(finished, tmp_path, capsys):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing PAR1")
    (tmp_path / "broken.tar").write_bytes(b"nothing" * 100)
    (tmp_path / "broken.json").write_bytes(b"{")
    for name in ("absent", "broken.parquet", "broken.tar", "broken.json"):
        assert main(["inspect", str(tmp_path / name)]) == 1
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_inspect_command_prints_json_where_asked(finished, capsys):
    assert main(["inspect", "--json", str(finished.root)]) == 0
    described = json.loads(capsys.readouterr().out)
    assert {stage["folder"].split("/")[0] for stage in described["stages"]} >= {"ingest", "tokenize", "plans"}


def test_inspect_of_a_checkpoint_tells_its_step_and_size(tmp_path):
    files = [{"name": "tensors-00-01234567.safetensors", "role": "tensors", "bytes": 12, "sha256": "00" * 32}]
    record = {
        "schema": 1,
        "step": 7,
        "loader": {},
        "model": {},
        "tensors": {"a/weight": files[0]["name"]},
        "files": files,
    }
    (tmp_path / "checkpoint.json").write_text(json.dumps(record))
    found, _ = inspect_path(str(tmp_path))
    assert (found["kind"], found["step"], found["bytes"]) == ("checkpoint", 7, 12)
    assert "01234567.safetensors: is missing" in found["faults"][0]


def _holds(table: Path, key: str) -> bool:
    try:
        inspect_path(str(table), key)
    except ManifestError:
        return False
    return True
