"""Films as they come from the wild: each bad one costs itself, names its reason, and leaves the decoder at work."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from tests.clip_files import ffmpeg, make_clip

from tokenmill.errors import RunError, SampleError
from tokenmill.pipelines.decode_video import VideoDecoder

SHORT = ("-frames:v", "50", "-vf", "scale=320:136,setsar=1")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Give a sound MP4 with its index in front."""
    folder = tmp_path_factory.mktemp("good")
    return make_clip(folder / "good.mp4", *SHORT, "-c:v", "libx264", "-movflags", "+faststart")


@pytest.fixture(scope="module")
def decoder():
    with VideoDecoder(timeout_s=30) as decoder:
        yield decoder


def read_all(decoder: VideoDecoder, path: Path, **options) -> np.ndarray:
    return decoder.frames(path, range(decoder.probe(path).num_frames), **options)


def reason(decoder: VideoDecoder, path: Path) -> str:
    with pytest.raises(SampleError) as caught:
        read_all(decoder, path, short_side_px=16)
    assert caught.value.transient == (caught.value.reason in ("timeout", "too_much_memory"))
    assert str(path) not in caught.value.message
    return caught.value.reason


def cut(share: float):
    return lambda good, path: path.write_bytes(good.read_bytes()[: int(good.stat().st_size * share)])


def no_index(good: Path, path: Path) -> None:
    ffmpeg("-i", str(good), "-c", "copy", str(path))
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"moov") - 4])


def fragments(length):
    def make(good: Path, path: Path) -> None:
        ffmpeg("-i", str(good), "-c", "copy", "-movflags", "frag_keyframe+empty_moov", str(path))
        path.write_bytes(path.read_bytes()[: length and length(path.read_bytes())])

    return make


def damaged(good: Path, path: Path) -> None:
    data = bytearray(good.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 9_000] = np.random.default_rng(0).bytes(9_000)
    path.write_bytes(data)


def more_announced(good: Path, path: Path) -> None:
    ffmpeg("-i", str(good), "-c:v", "mpeg4", "-f", "avi", str(path))
    data = bytearray(path.read_bytes())
    length = data.find(b"strh") + 40
    assert int.from_bytes(data[length : length + 4], "little") == 50
    data[length : length + 4] = (80).to_bytes(4, "little")
    path.write_bytes(data)


def no_frames(good: Path, path: Path) -> None:
    ffmpeg("-i", str(good), "-frames:v", "0", "-c:v", "mpeg4", "-f", "avi", str(path))


def days_between(good: Path, path: Path) -> None:
    late = "setpts='if(lt(N,10),PTS,PTS+100000/TB)'"
    ffmpeg("-i", str(good), "-vf", late, "-fps_mode", "passthrough", "-c:v", "libx264", "-f", "matroska", str(path))


def playlist(good: Path, path: Path) -> None:
    path.write_text(f"ffconcat version 1.0\nfile {good.name}\n")
    path.with_name(good.name).write_bytes(good.read_bytes())


def audio(good: Path, path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", str(path))


def picture(good: Path, path: Path) -> None:
    ffmpeg("-i", str(good), "-frames:v", "1", "-c:v", "png", "-f", "image2", "-update", "1", str(path))


BAD = {
    "cut inside its index": (cut(0.03), "truncated"),
    "cut in the middle": (cut(0.5), "truncated"),
    "cut near its end": (cut(0.97), "truncated"),
    "cut inside a fragment": (fragments(lambda data: len(data) // 2), "truncated"),
    "moov missing": (no_index, "not_a_video"),
    "no frames": (no_frames, "no_frames"),
    "fragments missing": (fragments(lambda data: data.find(b"moof") - 4), "no_frames"),
    "text": (lambda good, path: path.write_text("no clip at all\n" * 100), "not_a_video"),
    "playlist of other files": (playlist, "not_a_video"),
    "picture": (picture, "not_a_video"),
    "no bytes": (lambda good, path: path.touch(), "empty"),
    "no video stream": (audio, "not_a_video"),
    "header lies about its frames": (more_announced, "wrong_frame_count"),
    "damaged": (damaged, "corrupt"),
    "days between two frames": (days_between, "absurd_times"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_film_costs_itself_and_names_its_reason(decoder, good, tmp_path, what):
    make, expected = BAD[what]
    path = tmp_path / "film.mp4"
    make(good, path)
    assert reason(decoder, path) == expected
    assert decoder.probe(good).num_frames == 50


def test_what_is_put_behind_a_film_in_fragments_costs_nothing(decoder, good, tmp_path):
    fragments(None)(good, tmp_path / "film.mp4")
    with (tmp_path / "film.mp4").open("ab") as file:
        file.write(b"TAG of something that is no box")
    assert len(read_all(decoder, tmp_path / "film.mp4", short_side_px=16)) == 50


def test_damage_costs_only_what_has_to_be_decoded(decoder, good, tmp_path):
    damaged(good, tmp_path / "film.mp4")
    assert np.array_equal(decoder.frames(tmp_path / "film.mp4", [0, 1]), decoder.frames(good, [0, 1]))


def test_film_of_one_pixel_is_read(decoder, tmp_path):
    clip = ("-frames:v", "3", "-vf", "scale=1:1,setsar=1", "-c:v", "libx264", "-pix_fmt", "yuv444p")
    path = make_clip(tmp_path / "one.mp4", *clip)
    assert read_all(decoder, path).shape == (3, 1, 1, 3)
    assert decoder.frames(path, [1], short_side_px=72).shape == (1, 1, 1, 3)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Give two frames of 7680 x 4320."""
    grey = ("-f", "lavfi", "-i", "color=gray:s=7680x4320:d=0.2:r=10", "-preset", "ultrafast")
    return make_clip(tmp_path_factory.mktemp("large") / "8k.mp4", *grey)


def test_film_of_8k_is_read_within_its_limits_and_refused_beyond(large, good):
    with VideoDecoder(max_pixels=100_000_000) as decoder:
        assert decoder.frames(large, [0, 1], short_side_px=54).shape == (2, 54, 96, 3)
        assert decoder.counts["decoded"] == 2
    with VideoDecoder(max_pixels=33_000_000) as decoder:
        assert reason(decoder, large) == "too_many_pixels"
        assert decoder.counts["decoded"] == 0
    with VideoDecoder(max_memory_bytes=100 << 20) as decoder:
        assert reason(decoder, large) == "too_much_memory"
        assert decoder.probe(good).num_frames == 50


@pytest.mark.parametrize("name", ["SIGABRT", "SIGSEGV"])
def test_film_that_ends_the_process_costs_itself(good, tmp_path, monkeypatch, name):
    monkeypatch.setenv("TOKENMILL_FAULT", "decode:clip:2")
    monkeypatch.setenv("TOKENMILL_FAULT_ACTION", name)
    monkeypatch.setenv("TOKENMILL_FAULT_ONCE", str(tmp_path / "died"))
    with VideoDecoder() as decoder:
        decoder.probe(good)
        with pytest.raises(SampleError, match=name) as caught:
            decoder.probe(good)
        assert (caught.value.reason, caught.value.transient) == ("decoder_crash", False)
        assert decoder.probe(good).num_frames == 50


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signal_to_all_processes_of_a_run_costs_no_film(good, name):
    with VideoDecoder() as decoder:
        decoder.probe(good)
        child = decoder.process_id
        os.kill(child, getattr(signal, name))  # as a scheduler sends it, with the parent: who drains goes on asking
        assert decoder.probe(good).num_frames == 50
        assert decoder.process_id == child


def test_decoder_that_hangs_costs_the_time_of_one_clip(good, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENMILL_FAULT", "decode:clip:2")
    monkeypatch.setenv("TOKENMILL_FAULT_ACTION", "hang")
    monkeypatch.setenv("TOKENMILL_FAULT_ONCE", str(tmp_path / "hung"))
    with VideoDecoder(timeout_s=1.5) as decoder:
        decoder.probe(good)
        started = time.monotonic()
        assert reason(decoder, good) == "timeout"
        assert 1.5 <= time.monotonic() - started < 10
        assert decoder.probe(good).num_frames == 50


def test_time_limit_grows_with_the_film_that_has_to_be_decoded(good):
    with VideoDecoder(timeout_s=1.0, per_second_s=0.0) as short, VideoDecoder(timeout_s=1.0, per_second_s=9.0) as long:
        for decoder in (short, long):
            decoder.probe(good)
            os.kill(decoder.process_id, signal.SIGSTOP)  # it is asked, and answers only when it is let go on
        with pytest.raises(SampleError, match="within 1"):
            short.frames(good, [1])
        os.kill(long.process_id, signal.SIGCONT)
        assert len(long.frames(good, range(50))) == 50
        assert long.allowed_s == pytest.approx(1.0 + 9.0 * 2.0, abs=0.1)


def test_time_limit_does_not_grow_with_the_pauses_of_a_film(good, tmp_path):
    pauses = ("-vf", "setpts=N*50000/TB", "-frames:v", "20", "-fps_mode", "passthrough", "-c:v", "libx264")
    ffmpeg("-i", str(good), *pauses, str(tmp_path / "film.mkv"))
    with VideoDecoder(timeout_s=30.0, per_second_s=4.0) as decoder:
        assert decoder.times(tmp_path / "film.mkv")[-1] > 900_000
        assert len(decoder.frames(tmp_path / "film.mkv", range(20))) == 20
        assert decoder.allowed_s <= 30 + 4 * 20 + 1


@pytest.mark.parametrize("device", ["abacus", "cuda"])
def test_device_that_is_not_there_ends_the_run_clearly(good, device):
    if device == "cuda" and Path("/dev/nvidia0").exists():
        pytest.skip("this machine has one")
    with VideoDecoder(hwaccel=device) as decoder, pytest.raises(RunError, match=f"video_hwaccel.*{device}"):
        decoder.probe(good)


def test_counts_say_that_each_wanted_frame_was_made_once(good):
    with VideoDecoder() as decoder:
        sampled = decoder.sample(good, 0, 50, 2.0, short_side_px=32)
        assert sampled.numbers.tolist() == [0, 12, 25, 37]
        assert sampled.seconds.tolist() == pytest.approx([0, 0.48, 1.0, 1.48])
        assert decoder.counts["converted"] == 4
        assert decoder.counts["decoded"] < 50
