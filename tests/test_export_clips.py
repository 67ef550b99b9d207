"""Clips as mp4 files: copied where cuts fall on keyframes, encoded again elsewhere, with their sound, once."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from tests import tiny
from tests.films import ffmpeg, shots

from tokenmill.cli import main
from tokenmill.errors import RunError
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.decode_video import VideoDecoder
from tokenmill.pipelines.line_child import LineChild

FPS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Films whose shots begin with keyframes, or in the middle between two; with sound; turned; of odd size."""
    folder = tmp_path_factory.mktemp("export")
    films = folder / "clips"
    films.mkdir()
    silent = shots(folder / "silent.mkv", [1.5, 1.5, 1.5], fps=FPS)
    tone = ("-f", "lavfi", "-i", "sine=d=4.5", "-shortest")
    every = ("-force_key_frames", "expr:gte(t,n_forced*1.5)", "-sc_threshold", "0", "-g", "1000")
    none = ("-sc_threshold", "0", "-g", "1000")
    ffmpeg("-i", silent, *tone, *every, "-c:a", "aac", films / "keys.mp4")
    ffmpeg("-i", silent, *tone, *none, "-c:a", "pcm_s16le", films / "between.mkv")
    ffmpeg("-display_rotation", "90", "-i", films / "keys.mp4", "-c", "copy", "-an", films / "turned.mp4")
    ffmpeg("-i", silent, "-vf", "scale=63:47", "-pix_fmt", "yuv444p", *none, films / "odd.mp4")
    caption = {"file": "keys.mp4", "caption": "three shots"}
    (films / "captions.jsonl").write_text(json.dumps(caption) + "\n")
    changes = {"filter.video.scenes.max_seconds": 10, "filter.video.rules.resolution": "width_px >= 64"}
    recipe = tiny.write_recipe(folder / "recipe.yaml", folder, str(folder / "root"), changes, sources=("clips",))
    assert main(["run", str(recipe), "--until", "select", "--json"]) == 0
    return folder


def export(folder, capsys, *arguments, to=None):
    capsys.readouterr()
    code = main(["export-clips", str(folder / "recipe.yaml"), "--to", str(to), "--json", *arguments])
    told = capsys.readouterr()
    assert told.out, told.err
    return code, json.loads(told.out)


@pytest.fixture
def exported(folder, tmp_path, capsys):
    code, told = export(folder, capsys, to=tmp_path / "out")
    assert code == 0
    return told, tmp_path / "out/clips"


def test_clips_are_copied_where_cuts_are_keyframes_and_encoded_elsewhere(folder, exported):
    told, out = exported
    assert (told["copied"], told["encoded"], told["there"], told["failed"]) == (3, 9, 0, {})
    assert told["bytes"] == sum(path.stat().st_size for path in out.rglob("*.mp4"))
    with VideoDecoder() as decoder:
        for film in sorted(path for path in (folder / "clips").iterdir() if path.suffix != ".jsonl"):
            found = sorted(out.glob(f"{film.name}.*.mp4"))
            assert [path.name.removeprefix(f"{film.name}.")[:15] for path in found] == [
                f"{n:07d}-{n + 15:07d}" for n in (0, 15, 30)
            ]
            for number, path in enumerate(found):
                expected = decoder.frames(film, range(15 * number, 15 * number + 15))
                frames = decoder.frames(path, range(15)).astype(int)
                assert decoder.probe(path).num_frames == 15
                assert np.allclose(decoder.times(path), np.arange(16) / FPS, atol=1e-3)
                height, width = frames.shape[1:3]
                differences = frames - expected[:, :height, :width]
                assert film.name != "keys.mp4" or not differences.any()
                assert np.abs(differences.mean(axis=3)).mean(axis=(1, 2)).max() < 5, film.name  # colour is halved


def test_sound_goes_along_and_ends_with_the_clip(exported):
    _, out = exported
    for name in ("keys.mp4", "between.mkv"):
        for path in out.glob(f"{name}.*.mp4"):
            with av.open(str(path)) as container:
                (stream,) = container.streams.audio
                assert stream.codec_context.codec.canonical_name == "aac"
                seconds = [
                    packet.pts * packet.time_base for packet in container.demux(stream) if packet.pts is not None
                ]
            assert -0.1 < seconds[0] < 0.1 and 1.3 < seconds[-1] < 1.6
    with av.open(str(next(out.glob("odd.mp4.*.mp4")))) as container:
        assert not container.streams.audio


def test_export_goes_on_where_it_was_left_and_says_what_was_there(folder, exported, tmp_path, capsys):
    _, out = exported
    gone = sorted(out.rglob("*.mp4"))[::4]
    before = {path: path.read_bytes() for path in out.rglob("*.mp4")}
    for path in gone:
        path.unlink()
    code, told = export(folder, capsys, to=out.parent)
    assert (code, told["there"], told["copied"] + told["encoded"]) == (0, 9, 3)
    assert {path: path.read_bytes() for path in out.rglob("*.mp4")} == before


def test_exported_folder_is_a_source_of_films_with_their_captions(exported):
    _, out = exported
    rows = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    assert {row["file"] for row in rows} == {str(path.relative_to(out)) for path in out.rglob("*.mp4")}
    assert {row["caption"] for row in rows if row["film"] == "keys.mp4"} == {"three shots"}
    assert all(row["key"].startswith(row["film"]) for row in rows)


def test_only_kept_clips_and_only_so_many_are_written_to_any_store(folder, capsys):
    store = open_store("memory://exported-clips")
    _, told = export(folder, capsys, "--kept", to="memory://exported-clips")
    assert told["copied"] + told["encoded"] == 6  # turned and odd ones are too narrow
    films = {entry.path.split("/")[1].rsplit(".", 2)[0] for entry in store.files() if entry.path.endswith(".mp4")}
    assert films == {"keys.mp4", "between.mkv"}
    _, told = export(folder, capsys, "--limit", "2", to="memory://exported-clips-2")
    assert told["copied"] + told["encoded"] == 2


def test_clip_that_ends_the_child_is_told_and_the_others_are_written(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TOKENMILL_FAULT", "export:clip:2=SIGABRT")
    monkeypatch.setenv("TOKENMILL_FAULT_ONCE", str(tmp_path / "once"))
    code, told = export(folder, capsys, "--limit", "3", to=tmp_path / "out")
    assert (code, told["failed"], told["copied"] + told["encoded"]) == (1, {"decoder_crash": 1}, 2)
    code, told = export(folder, capsys, "--limit", "3", to=tmp_path / "out")
    assert (code, told["there"], told["failed"]) == (0, 2, {})


def test_full_disk_ends_the_export_and_is_no_clips_fault(folder):
    clip = {"film": str(folder / "clips/keys.mp4"), "start_frame": 0, "end_frame": 15, "to": "/dev/full"}
    told = "no clip can be written there: No space left"
    with (
        LineChild("tokenmill.pipelines.export_clips_child", timeout_s=60) as child,
        pytest.raises(RunError, match=told),
    ):
        child.ask(clip)


def test_recipe_without_films_or_without_clips_is_refused(folder, tmp_path, capsys):
    tiny.write_pictures(tmp_path)
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tmp_path, str(tmp_path / "root"), sources=("photos",))
    assert main(["export-clips", str(recipe), "--to", str(tmp_path / "out")]) == 2
    assert "no source of films" in capsys.readouterr().err
    path = tiny.write_recipe(tmp_path / "new.yaml", folder, str(tmp_path / "new"), sources=("clips",))
    assert main(["export-clips", str(path), "--to", str(tmp_path / "out")]) == 1
    assert not Path(tmp_path / "out").exists()
