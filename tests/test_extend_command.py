"""`tokenmill extend`: the given part stays, the rest is drawn behind it; where one becomes the other is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from tests import tiny
from tests.drawing_export import V, clip_frames, random_export
from tests.films import ffmpeg, shots

from tokenmill.cli import main
from tokenmill.errors import RecipeError
from tokenmill.generate.drawn_files import read_about
from tokenmill.generate.pictures import parse_pictures
from tokenmill.manifests.archive import ArchiveWriter, npy_bytes
from tokenmill.pipelines.decode_video import VideoDecoder
from tokenmill.pipelines.given_media import Wanted, read_media
from tokenmill.studio import Reach, Shape, Studio, open_studio
from tokenmill.tokenize.preprocess import resize

SIZE = (24, 32)  # of 48 x 64 pixels, within the trained area


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_export(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def studio(model: Path) -> Studio:
    return open_studio(model)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 frames, 8 a second."""
    return shots(tmp_path_factory.mktemp("film") / "long.mp4", [2.25], fps=8)


@pytest.fixture(scope="module")
def pixels(film: Path) -> Any:
    with VideoDecoder() as decoder:
        return decoder.frames(film, range(18))


@pytest.fixture
def extend(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command into `tmp_path/out`; returns its JSON."""

    def run(*words: object) -> dict[str, Any]:
        code = main(["extend", str(model), *map(str, words), "--out", str(tmp_path / "out"), "--json"])
        told = capsys.readouterr()
        assert code == 0, told.err
        found: dict[str, Any] = json.loads(told.out)
        return found

    return run


def codes_in(folder: Path, row: dict[str, Any]) -> Any:
    """Return the stored codes of a file."""
    tokens = pl.read_parquet(folder / row["tokens"])
    (ids,) = tokens.filter(pl.col("file") == row["file"])["ids"].to_list()
    (clip,) = parse_pictures(ids, V)
    return clip.codes_thw


def test_film_goes_on_behind_its_last_frame(extend, film, pixels, studio, tmp_path):
    asked = ("--prompt", "colours", "--context-frames", 8, "--new-frames", 4, "--seconds", 3.5, "--seed", 2)
    report = extend(film, *asked)
    (row,) = report["clips"]
    assert (report["drawn"], report["found"]) == (1, 0)
    begun = row["extends"]
    assert {name: begun[name] for name in ("name", "frames", "seconds", "context_frames", "new_frames")} == {
        "name": "long.mp4", "frames": 16, "seconds": 2.0, "context_frames": 8, "new_frames": 4,
    }  # fmt: skip
    assert row["notes"] == ["the first 2 frames are left out: a code is 4 frames"]
    assert (row["frames"], row["seconds"], row["fps"], row["latent_frames"]) == (28, 3.5, 8.0, 7)
    codes = codes_in(tmp_path / "out", row)
    small = np.stack([resize(frame, SIZE) for frame in pixels[2:]])
    assert np.array_equal(codes[:4], studio.model.vision.encode_video(small[None])[0])
    data = (tmp_path / "out" / row["file"]).read_bytes()
    frames, tags = clip_frames(data)
    assert frames.shape == (28, *SIZE, 3)
    assert tags["title"] == "colours"
    assert read_about(data)["extends"] == begun
    given = studio.model.vision.decode_video(codes[None, :4].astype(np.uint32))[0]
    assert np.abs(frames[:16].astype(int) - given).mean() < 6  # as well as the codec keeps it
    again = extend(film, *asked)
    assert (again["drawn"], again["found"], again["clips"]) == (0, 1, report["clips"])


def test_files_are_named_after_the_prompt_or_the_film(extend, film):
    (named,) = extend(film, "--context-frames", 4, "--prompt", "A ball")["clips"]
    (unnamed,) = extend(film, "--context-frames", 4)["clips"]
    assert named["file"].startswith("a-ball-0-")
    assert unnamed["file"].startswith("long-0-")
    assert unnamed["frames"] == named["frames"] == 20  # 16 and, where nothing is said, as many as the context


def test_folder_of_frames_and_array_go_on_like_the_film(extend, film, pixels, studio, tmp_path):
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(pixels):
        Image.fromarray(frame).save(tmp_path / "frames" / f"frame{number}.png")  # 10 stands behind 9
    reach = ("--context-frames", 4, "--seconds", 2.5)
    (folder,) = extend(tmp_path / "frames", "--fps", 8, *reach)["clips"]
    (whole,) = extend(film, *reach)["clips"]
    expected = codes_in(tmp_path / "out", whole)
    assert np.array_equal(codes_in(tmp_path / "out", folder), expected)
    drawn = studio.extend(pixels, Reach(context_frames=4, total_seconds=2.5), fps=8)
    (clip,) = parse_pictures(drawn.ids, V)
    assert np.array_equal(clip.codes_thw, expected)


def test_clip_at_another_rate_takes_fewer_frames(extend, film):
    (row,) = extend(film, "--fps", 4, "--context-frames", 4)["clips"]
    assert (row["extends"]["frames"], row["fps"], row["frames"]) == (8, 4.0, 12)


def test_clip_of_a_varying_rate_is_taken_at_even_times(tmp_path, film, pixels):
    slower = "setpts='if(lt(N,8),N,N*2-8)/8/TB'"  # from the ninth frame on, each is shown twice as long
    ffmpeg("-i", film, "-vf", slower, "-fps_mode", "vfr", "-qp", "0", tmp_path / "varying.mkv")
    media = read_media(str(tmp_path / "varying.mkv"), Wanted(fps=8))
    expected = [*range(8), *(number for number in range(8, 18) for _ in range(2))]
    assert len(expected) - 1 <= len(media.frames) <= len(expected)  # the last one's length is not in the file
    near = np.abs(media.frames.astype(int) - pixels[expected[: len(media.frames)]]).mean(axis=(1, 2, 3))
    assert near.max() < 3
    assert media.seconds[:3] == (0.0, 0.125, 0.25)


def test_drawn_clip_and_stored_tokens_are_not_encoded_again(extend, studio, tmp_path):
    (drawn,) = studio.draw("a ball", Shape(seconds=1, fps=8), seed=5, out=tmp_path / "out")
    (clip,) = parse_pictures(drawn.ids, V)
    (mp4,) = (tmp_path / "out").glob("a-ball*.mp4")
    (row,) = extend(mp4, "--context-frames", 4)["clips"]
    assert row["notes"] == ["its stored codes, not encoded again"]
    assert np.array_equal(codes_in(tmp_path / "out", row)[:2], clip.codes_thw)
    segments = [{"vision": list(clip.codes_thw.shape), "offset": 0, "fps": 8.0, "seconds": 1.0}]
    with ArchiveWriter(tmp_path / "shard.tar") as writer:
        members = {
            "codes.npy": npy_bytes(clip.codes_thw.reshape(-1).astype(np.uint16)),
            "text.npy": npy_bytes(np.zeros(0, np.uint32)),
            "json": json.dumps({"key": "k", "segments": segments}).encode(),
        }
        writer.add("k", members)
    (other,) = extend(tmp_path / "shard.tar", "--key", "k", "--context-frames", 4)["clips"]
    assert np.array_equal(codes_in(tmp_path / "out", other), codes_in(tmp_path / "out", row))


def test_several_clips_are_extended_together_and_each_as_alone(extend, film, tmp_path):
    shorter = shots(tmp_path / "short.mp4", [1], fps=8)
    both = extend(film, shorter, "--context-frames", 4)["clips"]
    assert [row["extends"]["frames"] for row in both] == [16, 8]
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    (alone,) = extend(shorter, "--context-frames", 4)["clips"]
    assert alone["ids_sha256"] == both[1]["ids_sha256"]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["FILM", "--context-seconds", "2.5"], 2, "16 frames, 2.00 s at 8 fps; the context takes 20"),
        (["FILM", "--context-frames", "20"], 2, "16 frames, 2.00 s at 8 fps; the context takes 20"),
        (["FILM", "--context-frames", "6"], 2, "context: 6 frames are no multiple of 4"),
        (["FILM", "--context-frames", "4", "--seconds", "2"], 2, "is 2.00 s long; ask for more"),
        (["FILM", "--context-frames", "4", "--context-seconds", "1"], 2, "frames or seconds, not both"),
        (["FILM", "--context-frames", "16", "--new-seconds", "30"], 2, "the model's context holds 512"),
        (["FILM", "--context-frames", "4", "--top-p", "2"], 2, "top_p is 2.0"),
        (["nowhere.mp4"], 2, "no such picture, clip"),
        (["FRAMES"], 2, "does not tell their rate; give --fps"),
        (["BROKEN"], 1, "broken.mp4"),
        (["FILM", "--key", "k"], 2, "--key: goes with a token archive"),
        ([], 2, "no clip to extend"),
    ],
)
def test_what_cannot_be_extended_is_refused_in_one_line(model, film, tmp_path, capsys, words, code, told):
    (tmp_path / "broken.mp4").write_bytes(film.read_bytes()[:700])
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "0.png").write_bytes(tiny.picture(0))
    places = {"FILM": film, "BROKEN": tmp_path / "broken.mp4", "FRAMES": tmp_path / "frames"}
    given = [str(places.get(word, word)) for word in words]
    assert main(["extend", str(model), *given, "--out", str(tmp_path / "out")]) == code
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


def test_frames_without_a_rate_or_less_than_a_window_are_refused(studio, pixels):
    with pytest.raises(RecipeError, match="needs fps"):
        studio.extend(pixels)
    with pytest.raises(RecipeError, match="3 frames; the model's tokenizer takes 4"):
        studio.extend(pixels[:3], fps=8)
