"""`tokenmill detokenize`: every stored sample becomes its picture, clip or page again; what cannot says why."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tokenmill.cli import main
from tokenmill.demo.scenes import render, scene
from tokenmill.errors import ManifestError, RecipeError
from tokenmill.manifests.archive import ArchiveWriter, npy_bytes
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.detokenize import Detokenizer, file_name
from tokenmill.pipelines.reconstruction import decoded_runs, grid_of
from tokenmill.pipelines.token_archive import TokenArchive, open_token_archive
from tokenmill.tokenize.segments import VisionSegment
from tokenmill.tokenize.vision import load_vision_tokenizer

SCENES = {"name": "scenes"}


def archives(root: Path, source: str = "*") -> list[Path]:
    """List the archives that hold samples."""
    found = sorted(root.glob(f"tokenize/{source}/*/*.tar"))
    return [path for path in found if at(path).commit.counts.out > 0]


def at(path: Path | str) -> TokenArchive:
    folder, _, name = str(path).rpartition("/")
    return open_token_archive(open_store(folder), name)


def shard(path: Path, **changes) -> str:
    """Write an archive that lies in no stage's folder, with one sample."""
    document = {"key": "a.b", "segments": changes.get("segments", [{"vision": [1, 2, 3], "offset": 0}])}
    codes = changes.get("codes", np.arange(6, dtype=np.uint16))
    members = {"codes.npy": npy_bytes(codes), "text.npy": npy_bytes(np.zeros(0, np.uint32))}
    members["json"] = json.dumps(document).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with ArchiveWriter(path) as writer:
        writer.add("a.b", {name: data for name, data in members.items() if name not in changes.get("without", ())})
    return str(path)


def opened(path, tmp_path, vision_spec=SCENES, file=None) -> Detokenizer:
    return Detokenizer(archive=at(path), to=open_store(str(tmp_path / "out")), vision_spec=vision_spec, file=file)


def test_every_sample_of_every_archive_decodes(finished, tmp_path):
    kinds = set()
    for archive in archives(finished.root):
        detokenizer = opened(archive, tmp_path, vision_spec=None)
        done = detokenizer.write(None)
        assert not done.faults
        assert done.samples + done.absent == detokenizer.archive.commit.counts.rows_in
        assert len({row["key"] for row in done.files}) == done.samples
        kinds |= {row["kind"] for row in done.files}
        for row in done.files:
            path = tmp_path / "out" / row["file"]
            if row["kind"] == "picture":
                assert Image.open(path).size == (row["width_px"], row["height_px"])
            if row["kind"] == "clip":
                with av.open(str(path)) as container:
                    shown = sum(1 for _ in container.decode(video=0))
                    assert shown == row["frames"] == round(row["fps"] * row["seconds"])
                    assert float(container.streams.video[0].average_rate) == pytest.approx(row["fps"], rel=0.01)
    assert kinds == {"picture", "clip", "text", "page"}


def test_command_writes_one_picture_and_tells_it_as_json(finished, tmp_path, capsys):
    archive = archives(finished.root, "scenes")[0]
    key = next(iter(at(archive).samples())).key
    target = tmp_path / "one.png"
    assert main(["detokenize", str(archive), "--key", key, "--out", str(target), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == [{"key": key, "file": "one.png", "kind": "picture", "height_px": 64, "width_px": 64}]
    seed = int(key[:5]) * 6 + int(key[5:])
    assert np.abs(np.asarray(Image.open(target)).astype(int) - render(scene(seed), 64)).mean() < 30


def test_clip_in_runs_of_frames_is_the_clip_decoded_at_once(finished):
    vision = load_vision_tokenizer("scenes")
    for sample in at(archives(finished.root, "clips")[0]).samples():
        (clip,) = (segment for segment in sample.segments if isinstance(segment, VisionSegment))
        grid = grid_of(clip, sample.codes, vision)
        (whole,) = decoded_runs(clip, grid, vision, 10**9)
        runs = list(decoded_runs(clip, grid, vision, 1))
        assert len(runs) == clip.t
        assert np.abs(np.concatenate(runs).astype(int) - whole).max() <= 1  # batches round otherwise


def test_text_becomes_its_words_as_text_and_as_a_page_without_markup(finished, tmp_path):
    archive = archives(finished.root, "text")[0]
    rows = opened(archive, tmp_path, vision_spec=None).write(None).files
    assert {row["kind"] for row in rows} == {"text", "page"}
    text = (tmp_path / "out" / next(row["file"] for row in rows if row["kind"] == "text")).read_text()
    assert len(text) > 20


def test_foreign_archive_needs_to_be_told_a_tokenizer(tmp_path):
    path = shard(tmp_path / "in" / "x.tar")
    with pytest.raises(RecipeError, match="--vision"):
        opened(path, tmp_path, vision_spec=None).write("a.b")
    (row,) = opened(path, tmp_path).write("a.b").files
    assert Image.open(tmp_path / "out" / row["file"]).size == (24, 16)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"codes": np.array([0, 1, 2, 3, 4, 2048], np.uint16)}, "reach 2048, the vision tokenizer's codebook has 2048"),
        ({"codes": np.arange(5, dtype=np.uint16)}, "reach to code 6 (grids: 1×2×3); it has 5"),
        ({"codes": np.arange(7, dtype=np.uint16)}, "reach to code 6 (grids: 1×2×3); it has 7"),
        ({"codes": np.arange(6.0)}, "float64 of shape (6,), not a row of unsigned integers"),
        ({"codes": np.arange(6, dtype=np.int64)}, "int64"),
        ({"codes": np.zeros((1, 2, 3), np.uint16)}, "shape (1, 2, 3)"),
        ({"segments": [{"vision": [1, 2], "offset": 0}]}, "not a segment"),
        ({"segments": "none"}, "not a list of segments"),
        ({"segments": []}, "reach to code 0 (grids: none)"),
        ({"segments": [{"text": [0, 4], "role": "body"}, {"vision": [1, 2, 3], "offset": 0}]}, "text id 4"),
        ({"without": ("codes.npy",)}, "has no codes.npy: not a sample of a token archive"),
    ],
)
def test_sample_that_is_not_what_it_says_is_one_clear_line(changes, told, tmp_path, capsys):
    path = shard(tmp_path / "in" / "x.tar", **changes)
    command = ["detokenize", path, "--vision", "scenes", "--out", str(tmp_path / "out")]
    assert main([*command, "--key", "a%2Eb"]) == 1
    error = capsys.readouterr().err
    assert told in error and ("a%2Eb" in error or "a.b" in error) and error.count("\n") == 1
    assert main([*command, "--all"]) == 1
    assert told in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.png"))


def test_key_that_is_not_there_names_some_that_are(finished, tmp_path):
    archive = archives(finished.root)[0]
    known = next(iter(at(archive).samples())).key
    with pytest.raises(ManifestError, match="holds no sample 'nobody'") as refused:
        opened(archive, tmp_path).write("nobody")
    assert repr(known) in str(refused.value)
    with pytest.raises(ManifestError, match="'a%2Eb'"):
        opened(shard(tmp_path / "in" / "x.tar"), tmp_path).write("nobody")


def test_archive_that_is_cut_off_is_told(finished, tmp_path):
    folder = finished.copy(tmp_path / "root")
    archive = archives(folder, "scenes")[0]
    archive.write_bytes(archive.read_bytes()[:4000])
    done = opened(archive, tmp_path).write(None)
    assert done.faults
    assert all("wanted bytes" in fault for fault in done.faults)
    whole = Path(shard(tmp_path / "in" / "x.tar"))
    whole.write_bytes(whole.read_bytes()[:1200])
    with pytest.raises(ManifestError, match="not a whole tar"):
        opened(whole, tmp_path).write(None)


def test_what_is_no_token_archive_is_refused(finished, tmp_path):
    (table,) = list(finished.root.glob("tokenize/photos/*/*.parquet"))[:1]
    with pytest.raises(ManifestError, match=r"not a token archive, which is a \.tar"):
        opened(table, tmp_path)
    packed = next(finished.root.glob("ingest/photos/*/*.tar"))
    with pytest.raises(ManifestError, match="stage ingest wrote it"):
        opened(packed, tmp_path)
    with pytest.raises(ManifestError, match="no such archive"):
        opened(tmp_path / "absent.tar", tmp_path)


def test_tokenizer_of_another_fingerprint_is_refused(finished, tmp_path):
    archive = archives(finished.root, "scenes")[0]
    with pytest.raises(ManifestError, match="made by the vision tokenizer"):
        opened(archive, tmp_path, {"name": "scenes", "dtype": "bfloat16"}).write(None)


def test_sample_that_failed_to_tokenize_tells_why(finished, tmp_path):
    for archive in archives(finished.root):
        detokenizer = opened(archive, tmp_path)
        table = detokenizer.archive.folder.read_rows(detokenizer.archive.commit)
        for key in table.filter(table["fail_reason"].is_not_null())["key"]:
            with pytest.raises(ManifestError, match="was not tokenized"):
                detokenizer.write(key)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--all", "--out", "x.png"], "name a folder"),
        (["--all", "--vision", "{a: 1}"], "a mapping with name"),
        (["--all", "--vision", "/no/such/folder"], "/no/such/folder"),
        (["--key", "a%2Eb", "--out", "x.mp4", "--vision", "scenes"], "is a picture: .png"),
    ],
)
def test_wrong_arguments_end_with_two(arguments, told, tmp_path, capsys):
    path = shard(tmp_path / "in" / "x.tar")
    assert main(["detokenize", path, *arguments]) == 2
    assert told in capsys.readouterr().err


def test_file_names_differ_for_every_key_and_stay_in_their_folder():
    keys = ["a", "a.b", "a/b", "a_b", "../a", "-a", "é", "x" * 400, "x" * 401, ""]
    names = [file_name(key, ".png") for key in keys]
    assert len(set(names)) == len(keys)
    assert all("/" not in name and not name.startswith(("-", ".")) and len(name) < 200 for name in names)
