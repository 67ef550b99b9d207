"""What comes out of a film: the frames of a plain decode whatever was skipped, upright, coloured, at their times."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from tests.clip_files import ffmpeg, make_clip, real_clip

from tokenmill.errors import SampleError
from tokenmill.pipelines.film import Film
from tokenmill.pipelines.film_pass import ALL_SHORT_CUTS
from tokenmill.pipelines.film_picture import scaled_size

SMALL = ("-vf", "scale=160:68,setsar=1", "-frames:v", "96")
X264 = ("-c:v", "libx264", "-g", "24")
OPEN = "open-gop=1:bframes=5:scenecut=0:b-pyramid="
KINDS = {
    "closed.mp4": X264,
    "closed.mkv": X264,
    "closed.ts": X264,
    "pyramid.mp4": (*X264, "-x264-params", "b-pyramid=normal:bframes=8:ref=8"),
    "open.mp4": (*X264, "-x264-params", f"{OPEN}normal"),
    "strict.ts": (*X264, "-x264-params", f"{OPEN}strict"),
    "refresh.mp4": (*X264, "-x264-params", "intra-refresh=1:scenecut=0"),
    "plain.avi": X264,
    "stream.h264": X264,
    "hevc.mp4": ("-c:v", "libx265", "-preset", "fast", "-x265-params", "log-level=none:keyint=24:bframes=4"),
    "four.mp4": ("-c:v", "mpeg4", "-bf", "2", "-g", "24"),
    "two.mpg": ("-c:v", "mpeg2video", "-bf", "2", "-g", "24"),
    "one.mpg": ("-c:v", "mpeg1video", "-bf", "2", "-g", "24"),
    "nine.webm": ("-c:v", "libvpx-vp9", "-g", "24", "-auto-alt-ref", "1", "-lag-in-frames", "12", "-cpu-used", "8"),
    "one.mp4": ("-c:v", "libsvtav1", "-g", "24", "-preset", "12"),
    "pictures.avi": ("-c:v", "mjpeg"),
    "prores.mov": ("-c:v", "prores"),
    "wmv.asf": ("-c:v", "wmv2", "-g", "24"),
}  # fmt: skip
FAR_BACK = {"open.mp4", "strict.ts", "refresh.mp4", "wmv.asf", "plain.avi", "stream.h264"}  # decoded from the start
COUNTED = {"plain.avi", "stream.h264"}


def plain(path: Path, count: int | None = None) -> np.ndarray:
    """Decode all, or the first so many, with PyAV: THWC."""
    with av.open(str(path)) as container:
        frames = islice(container.decode(video=0), count)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def read(film: Film, numbers, short_side_px: int | None = None) -> np.ndarray:
    size = scaled_size(film.height_px, film.width_px, short_side_px)
    return np.stack(list(film.read(list(numbers), *size)))


def opened(path: Path) -> Film:
    return Film(str(path), max_pixels=100_000_000).open()


def requests(count: int) -> list[list[int]]:
    """Make requests as they come: frames at a rate, a stretch, single ones; forward mostly, sometimes back."""
    chosen = random.Random(0)
    rates = [list(range(start, count, 12)) for start in (0, 5)]
    stretches = [list(range(start, start + 9)) for start in (0, 30, 39, 80, 20)]
    scattered = [sorted(chosen.sample(range(count), size)) for size in (1, 2, 3, 5, 8, 1, 1, 2)]
    return [*rates, *stretches, *scattered, [count - 1], [0, count - 1]]


@pytest.mark.parametrize("name", KINDS)
def test_frames_read_by_short_cuts_equal_those_of_a_plain_decode(tmp_path, name):
    path = make_clip(tmp_path / name, *SMALL, *KINDS[name])
    expected, film = plain(path), opened(path)
    assert film.index.num_frames == len(expected) == 96
    assert film.index.is_counted == (name in COUNTED)
    for numbers in requests(96):
        assert np.array_equal(read(film, numbers), expected[numbers])
    assert film.short_cuts == ALL_SHORT_CUTS
    assert film.counts["converted"] == sum(map(len, requests(96)))
    film.counts.clear()
    read(film, [2, 95])
    assert (film.counts["decoded"] > 40) == (name in FAR_BACK)


def test_invisible_frames_of_vp8_do_not_count(tmp_path):
    clip = (
        "-c:v",
        "libvpx",
        "-g",
        "24",
        "-auto-alt-ref",
        "1",
        "-lag-in-frames",
        "16",
        "-b:v",
        "200k",
        "-cpu-used",
        "4",
    )
    passes = (*SMALL, *clip, "-passlogfile", str(tmp_path / "log"), "-pass")
    ffmpeg("-i", str(real_clip()), *passes, "1", "-f", "null", "-")
    path = make_clip(tmp_path / "eight.webm", *passes, "2")
    expected, film = plain(path), opened(path)
    with av.open(str(path)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) > 96
    assert film.index.num_frames == len(expected) == 96
    for numbers in requests(96):
        assert np.array_equal(read(film, numbers), expected[numbers])
    film.counts.clear()
    read(film, [2, 95])
    assert film.counts["decoded"] <= 40


def test_two_frames_a_second_leave_out_what_no_frame_needs(tmp_path):
    path = make_clip(tmp_path / "clip.mp4", *SMALL, "-c:v", "libx264")
    film = opened(path)
    read(film, range(0, 96, 12))
    assert film.counts["converted"] == 8
    assert film.counts["decoded"] < 0.7 * 96


def test_frames_behind_a_keyframe_cost_nothing_before_it(tmp_path):
    film = opened(make_clip(tmp_path / "clip.mp4", *SMALL, *X264))
    film.counts.clear()
    read(film, [90])
    assert film.counts["decoded"] < 24


@pytest.mark.parametrize(
    ("matrix", "span"), [("bt709", "limited"), ("smpte170m", "limited"), ("bt709", "full"), ("smpte170m", "full")]
)
def test_colours_are_those_that_ffmpeg_makes_of_the_flags(tmp_path, matrix, span):
    to = {"bt709": "bt709", "smpte170m": "bt601"}[matrix]
    scale = f"scale=out_color_matrix={to}:out_range={span},setparams=colorspace={matrix}:range={span}"
    path = make_clip(tmp_path / "clip.mp4", "-frames:v", "2", "-vf", scale, "-c:v", "libx264", "-qp", "4")
    film = opened(path)
    theirs = np.frombuffer(ffmpeg("-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"), np.uint8)
    theirs = theirs.reshape(2, 272, 640, 3).astype(int)
    assert np.abs(read(film, range(2)) - theirs).mean() < 1.2
    original = plain(real_clip(), 2).astype(int)
    assert np.abs(read(film, range(2)) - original).mean() < 4  # a wrong matrix or range is off by more
    small = read(film, range(2), 68)
    assert np.abs(small - original.reshape(2, 68, 4, 160, 4, 3).mean((2, 4))).mean() < 4


@pytest.mark.parametrize(
    ("pixel_format", "codec"),
    [("yuv420p10le", "libx264"), ("yuv444p", "libx264"), ("gray16le", "ffv1"), ("bgr0", "ffv1")],
)
def test_pixel_formats_of_all_depths_become_rgb(tmp_path, pixel_format, codec):
    path = make_clip(tmp_path / "clip.mkv", "-frames:v", "2", "-c:v", codec, "-pix_fmt", pixel_format)
    film, original = opened(path), plain(real_clip(), 2).astype(int)
    if pixel_format == "gray16le":
        original = np.repeat((original @ [0.299, 0.587, 0.114])[..., None], 3, axis=-1)
    assert film.facts()["pixel_format"] == pixel_format
    assert np.abs(read(film, range(2)) - original).mean() < 5


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotated_film_stands_as_ffmpeg_turns_it(tmp_path, degrees):
    path = make_clip(tmp_path / "turned.mp4", "-display_rotation", str(degrees), "-i", str(real_clip()), "-c", "copy")
    film = opened(path)
    theirs = ffmpeg("-i", str(path), "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    expected = np.frombuffer(theirs, np.uint8).reshape(film.height_px, film.width_px, 3).astype(int)
    assert (film.height_px > film.width_px) == (degrees != 180)
    assert np.abs(read(film, [0])[0] - expected).mean() < 2
    assert read(film, [3], 68).shape[1:3] == ((160, 68) if degrees != 180 else (68, 160))


def test_wide_pixels_are_shown_wide(tmp_path):
    path = make_clip(tmp_path / "wide.mp4", "-frames:v", "2", "-vf", "scale=320:272,setsar=2", "-c:v", "libx264")
    film = opened(path)
    assert (film.width_px, film.height_px) == (640, 272)
    assert np.abs(read(film, [0])[0].astype(int) - plain(real_clip(), 1)[0]).mean() < 6


def test_interlaced_frame_gives_one_field(tmp_path):
    rise = "tinterlace=interleave_top,setfield=tff"
    source = ("-f", "lavfi", "-i", "color=black:s=320x240:r=50:d=0.4,geq=lum='16+200*mod(N,2)':cb=128:cr=128")
    path = make_clip(tmp_path / "fields.mp4", *source, "-vf", rise, "-c:v", "libx264", "-flags", "+ildct", "-qp", "1")
    film = opened(path)
    assert film.facts()["is_interlaced"]
    full, small = read(film, range(3)), read(film, range(3), 60)
    assert (full.shape, small.shape) == ((3, 240, 320, 3), (3, 60, 80, 3))
    assert max(full.max(), small.max()) < 8  # the other field is bright
    assert plain(path).max() > 200


def test_high_dynamic_range_is_recorded(tmp_path):
    parameters = "transfer=smpte2084:colorprim=bt2020:colormatrix=bt2020nc"
    clip = ("-frames:v", "2", "-c:v", "libx264", "-pix_fmt", "yuv420p10le", "-x264-params", parameters)
    assert opened(make_clip(tmp_path / "pq.mp4", *clip)).facts()["is_hdr"]
    assert not opened(real_clip()).facts()["is_hdr"]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_times_of_a_variable_rate_are_those_of_the_file(tmp_path, suffix):
    thinned = "scale=160:68,select='not(mod(n,3))+lt(n,40)'"
    path = make_clip(
        tmp_path / f"vfr.{suffix}", "-vf", thinned, "-fps_mode", "vfr", "-frames:v", "60", "-c:v", "libx264"
    )
    kept = [number for number in range(250) if number < 40 or number % 3 == 0][:60]
    film = opened(path)
    assert np.abs(film.index.times[:-1] - np.array(kept) / 25).max() < 0.002
    assert film.facts()["is_variable_rate"]
    assert film.facts()["fps"] == pytest.approx(60 / film.index.times[-1], rel=0.01)


@pytest.mark.parametrize("name", ["plain.avi", "stream.h264", "closed.ts", "closed.mkv", "closed.mp4"])
def test_even_rate_without_usable_times_or_duration_is_recognised(tmp_path, name):
    film = opened(make_clip(tmp_path / name, *SMALL, *X264))
    assert film.index.times == pytest.approx(np.arange(97) / 25, abs=1e-3)
    assert (film.facts()["fps"], film.facts()["is_variable_rate"]) == (25.0, False)


def test_frames_that_an_edit_list_hides_do_not_count(tmp_path):
    whole = make_clip(tmp_path / "whole.mp4", *SMALL, *X264)
    path = make_clip(tmp_path / "edited.mp4", "-ss", "1.5", "-i", str(whole), "-c", "copy")
    film, expected = opened(path), plain(path)
    with av.open(str(path)) as container:
        hidden = sum(packet.is_discard for packet in container.demux(video=0))
    assert hidden > 0
    assert film.index.num_frames == len(expected) < 96
    assert np.array_equal(read(film, range(film.index.num_frames)), expected)


@pytest.mark.parametrize("name", ["closed.ts", "strict.ts", "two.mpg"])
def test_recording_that_starts_between_keyframes_begins_at_the_first(tmp_path, name):
    whole = make_clip(tmp_path / name, *SMALL, *KINDS[name])
    expected = plain(whole)
    data = whole.read_bytes()
    size = {"ts": 188, "mpg": 2048}[name.split(".")[1]]
    path = tmp_path / f"late.{name.split('.')[1]}"
    path.write_bytes(data[size * (len(data) // size // 3) :])
    film = opened(path)
    count = film.index.num_frames
    assert 30 < count < 80
    assert np.array_equal(read(film, range(count)), expected[-count:])
    assert np.array_equal(read(film, range(0, count, 12)), expected[-count:][::12])


def test_film_whose_clock_starts_again_is_counted(tmp_path):
    once = make_clip(tmp_path / "once.ts", *SMALL, *X264)
    path = tmp_path / "twice.ts"
    path.write_bytes(once.read_bytes() * 2)
    film, expected = opened(path), plain(once)
    assert film.index.is_counted
    assert film.index.num_frames == 2 * 96
    assert np.array_equal(read(film, [0, 95, 96, 150, 191]), expected[[0, 95, 0, 54, 95]])
    assert film.index.times[-1] == pytest.approx(2 * 96 / 25)


def test_cover_picture_is_no_film_and_the_best_stream_is_taken(tmp_path):
    cover = make_clip(tmp_path / "cover.png", "-frames:v", "1")
    clip = make_clip(tmp_path / "clip.mp4", *SMALL, "-c:v", "libx264")
    tone = ("-f", "lavfi", "-i", "sine=d=1")
    pinned = ("-c:v:0", "png", "-disposition:v:0", "attached_pic")
    song = make_clip(tmp_path / "song.m4a", *tone, "-i", str(cover), "-map", "0", "-map", "1", *pinned)
    with pytest.raises(SampleError, match="no video stream"):
        opened(song)
    streams = ("-map", "1", "-map", "2:v", "-map", "0", "-c:v:1", "copy")
    path = make_clip(tmp_path / "film.mp4", *tone, "-i", str(cover), "-i", str(clip), *streams, *pinned)
    facts = opened(path).facts()
    assert (facts["codec"], facts["width_px"], facts["has_audio"]) == ("h264", 160, True)
    assert not opened(clip).facts()["has_audio"]
