"""What captioners look at: originals where they will do, made anew where not; frames of clips where they should be."""

from __future__ import annotations

import shutil
import threading
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import skimage.data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.clip_files import make_clip, real_clip
from tests.films import shots

from tokenmill.errors import RunError, SampleError
from tokenmill.pipelines.caption_pictures import PictureMaker, Prepared
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.decode_image import decode_image
from tokenmill.pipelines.decode_video import VideoDecoder
from tokenmill.pipelines.decoding import DecodeLimits, SampleReader
from tokenmill.pipelines.encode_image import encoded_picture, plain_media_type, shrunk_picture
from tokenmill.pipelines.questions import stretches
from tokenmill.recipe import check_recipe

LIMITS = {"max_side_px": 160, "max_pixels": 10**7}


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    return Image.fromarray(skimage.data.astronaut()[:120, :160])


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


PLAIN = {
    "jpeg": lambda image: saved(image, "JPEG", quality=90),
    "progressive jpeg": lambda image: saved(image, "JPEG", progressive=True),
    "grey jpeg": lambda image: saved(image.convert("L"), "JPEG"),
    "png": lambda image: saved(image, "PNG"),
    "grey png": lambda image: saved(image.convert("L"), "PNG"),
    "webp": lambda image: saved(image, "WEBP"),
}
OTHERS = {
    "turned jpeg": lambda image: saved(image, "JPEG", exif=turned()),
    "turned png": lambda image: saved(image, "PNG", exif=turned()),
    "turned webp": lambda image: saved(image, "WEBP", exif=turned()),
    "cmyk jpeg": lambda image: saved(image.convert("CMYK"), "JPEG"),
    "png with alpha": lambda image: saved(image.convert("RGBA"), "PNG"),
    "png of a palette": lambda image: saved(image.convert("P"), "PNG"),
    "transparent png": lambda image: saved(image, "PNG", transparency=tuple(image.getpixel((0, 0)))),
    "16-bit png": lambda image: saved(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG"),
    "moving png": lambda image: saved(image, "PNG", save_all=True, append_images=[image.rotate(180)]),
    "moving webp": lambda image: saved(image, "WEBP", save_all=True, append_images=[image.rotate(180)]),
    "webp with alpha": lambda image: saved(Image.merge("RGBA", (*image.split(), image.getchannel(0))), "WEBP"),
    "gif": lambda image: saved(image, "GIF"),
    "bmp": lambda image: saved(image, "BMP"),
    "tiff": lambda image: saved(image, "TIFF"),
    "too large": lambda image: saved(image.resize((320, 240)), "JPEG", quality=95),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_picture_is_passed_on_byte_by_byte(photograph, kind):
    data = PLAIN[kind](photograph)
    found = encoded_picture(data, **LIMITS)
    assert found.data is data
    assert found.media_type == f"image/{kind.split()[-1]}"


@pytest.mark.parametrize("kind", OTHERS)
def test_other_picture_becomes_a_jpeg_of_what_decoding_shows(photograph, kind):
    data = OTHERS[kind](photograph)
    found = encoded_picture(data, **LIMITS)
    assert found.media_type == "image/jpeg"
    with Image.open(BytesIO(found.data)) as made:
        assert (made.format, made.mode, made.layer) == ("JPEG", "RGB", [(1, 1, 1, 0), (2, 1, 1, 1), (3, 1, 1, 1)])
        pixels = np.asarray(made)
    shown = shrunk_picture(data, **LIMITS)
    assert pixels.shape == shown.shape
    assert np.abs(pixels.astype(int) - shown).mean() < 6
    if kind != "too large":
        assert np.array_equal(shown, decode_image(data, max_pixels=10**7))


@pytest.mark.parametrize("kind", ["jpeg", "progressive jpeg", "png", "webp", "turned jpeg", "too large"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.995])
def test_picture_cut_off_is_never_passed_on(photograph, kind, share):
    data = (PLAIN | OTHERS)[kind](photograph)
    with pytest.raises(SampleError) as caught:
        encoded_picture(data[: int(len(data) * share)], **LIMITS)
    assert caught.value.reason in ("truncated", "corrupt")


def test_png_with_a_flipped_bit_is_as_decoding_sees_it_and_not_passed_on(photograph):
    data = bytearray(PLAIN["png"](photograph))
    data[len(data) // 2] ^= 1
    assert plain_media_type(bytes(data), **LIMITS) is None
    data[len(data) // 2] ^= 1
    assert plain_media_type(bytes(data), **LIMITS) == "image/png"


def test_jpeg_with_rubbish_behind_its_end_is_made_anew(photograph):
    data = PLAIN["jpeg"](photograph)
    assert encoded_picture(data + b"\0\0rubbish", **LIMITS).data.endswith(b"\xff\xd9")


@pytest.mark.parametrize("data", [b"", b"<html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xd9", b"RIFF\4\0\0\0WEBP"])
def test_what_is_no_picture_is_a_reason(data):
    with pytest.raises(SampleError):
        encoded_picture(data, **LIMITS)


@pytest.mark.parametrize("kind", PLAIN)
def test_picture_of_too_many_pixels_is_refused_wherever_it_would_go(photograph, kind):
    for make in (encoded_picture, shrunk_picture):
        with pytest.raises(SampleError, match="too_many_pixels"):
            make(PLAIN[kind](photograph), max_side_px=None, max_pixels=120 * 160 - 1)


def test_large_picture_is_shrunk_to_the_very_side_and_keeps_what_it_shows():
    large = Image.fromarray(skimage.data.astronaut()).resize((2000, 1500), Image.Resampling.BICUBIC)
    found = shrunk_picture(saved(large, "JPEG", quality=95), max_side_px=384, max_pixels=10**7)
    assert found.shape == (288, 384, 3)
    expected = np.asarray(large.resize((384, 288), Image.Resampling.LANCZOS))
    assert np.abs(found.astype(int) - expected).mean() < 3


def test_picture_without_a_limit_keeps_its_size(photograph):
    data = OTHERS["too large"](photograph)
    assert encoded_picture(data, max_side_px=None, max_pixels=10**7).data is data
    assert shrunk_picture(data, max_side_px=None, max_pixels=10**7).shape == (240, 320, 3)


# From the rows of a source.


@pytest.fixture(scope="module")
def chain(tmp_path_factory, photograph) -> Chain:
    """Pictures of three kinds, one cut off, and films: a real one of 10 s, one of 45 s, one that is none."""
    folder = tmp_path_factory.mktemp("raw")
    photos, films = folder / "photos", folder / "films"
    photos.mkdir()
    films.mkdir()
    (photos / "a.jpg").write_bytes(PLAIN["jpeg"](photograph))
    (photos / "b.png").write_bytes(PLAIN["webp"](photograph))  # the extension lies
    (photos / "c.jpg").write_bytes(PLAIN["jpeg"](photograph)[:-500])
    (photos / "d.png").write_bytes(OTHERS["png with alpha"](photograph))
    shutil.copy(real_clip(), films / "bikes.mp4")
    shots(films / "long.mp4", [12, 18, 15], fps=4)
    value = {
        "root": str(folder / "root"),
        "execution": {"executor": "inline", "decode_threads": 2},
        "sources": {
            "photos": {"kind": "images", "url": str(photos)},
            "films": {"kind": "videos", "url": str(films)},
        },
    }
    return Chain(recipe=check_recipe(value, "test"), options=ChainOptions(quiet=True))


def maker(chain: Chain, source: str, takes: Any, *, side: int | None = None, frames: int = 12, **limits: Any) -> Any:
    """Return a maker, and a slice of the source."""
    (piece,) = chain.pieces["photos"] if source == "photos" else (None,)
    reader = SampleReader(source, chain.recipe.sources[source].model_dump(), DecodeLimits(**limits))
    modality = "image" if source == "photos" else "video"
    return PictureMaker(reader, takes, side, modality, frames), piece, reader


def clip(path: str, start: int, end: int, *spans: tuple[int, int], size: tuple[int, int] = (64, 48)) -> list[Any]:
    """Return the questions of one clip: a row for each of its stretches."""
    common = {"key": f"{path}#{start}-{end}", "path": path, "start_frame": start, "end_frame": end, "fps": 4.0}
    common |= {"width_px": size[0], "height_px": size[1]}
    pieces = spans or ((start, end),)
    return [
        common | {"piece": number, "pieces": len(pieces), "piece_start_frame": first, "piece_end_frame": last}
        for number, (first, last) in enumerate(pieces)
    ]


@pytest.mark.parametrize("threads", [1, 2])
def test_encoded_pictures_of_a_slice_come_in_order_with_reasons_in_their_places(chain, photograph, threads):
    pictures, piece, reader = maker(chain, "photos", "encoded", side=160, threads=threads)
    rows = piece.read()
    found = list(pictures.pictures(piece, rows))
    reader.close()
    assert rows["key"].to_list() == ["a.jpg", "b.png", "c.jpg", "d.png"]
    kinds = [one.reason if isinstance(one, SampleError) else one.pictures[0].media_type for one in found]
    assert kinds == ["image/jpeg", "image/webp", "truncated", "image/jpeg"]
    assert found[0].pictures[0].data == PLAIN["jpeg"](photograph)
    assert found[0].frames is None
    assert found[0].seconds == ()


def test_questions_of_some_rows_in_another_order_get_their_own_pictures(chain):
    pictures, piece, reader = maker(chain, "photos", "pixels", side=100)
    rows = piece.read()
    found = list(pictures.pictures(piece, rows[[3, 0]].with_columns(piece=0, pieces=1)))
    reader.close()
    assert [one.frames.shape for one in found] == [(1, 75, 100, 3)] * 2
    assert [one.pictures for one in found] == [(), ()]
    whole = decode_image(reader._payload(next(reader._found(piece, rows))), max_pixels=10**7)
    assert np.abs(found[1].frames[0].mean() - whole.mean()) < 3


def test_pictures_whose_bytes_are_others_now_are_a_reason(chain):
    pictures, piece, _ = maker(chain, "photos", "encoded")
    rows = piece.read().with_columns(sha256=pl.lit("0" * 64))
    assert {one.reason for one in pictures.pictures(piece, rows)} == {"changed_since_ingest"}


def test_too_many_bad_pictures_in_a_row_end_the_run(chain):
    pictures, piece, _ = maker(chain, "photos", "encoded", failure_budget=2)
    rows = piece.read().with_columns(sha256=pl.lit("0" * 64))
    with pytest.raises(RunError, match="3 samples failed in a row"):
        list(pictures.pictures(piece, rows))


def test_pictures_are_made_no_further_ahead_than_the_readers_window(chain):
    pictures, piece, _ = maker(chain, "photos", "pixels", threads=2)
    rows = pl.concat([piece.read()[:1]] * 100)
    made, lock, real = [], threading.Lock(), pictures._picture

    def counting(data: bytes) -> Prepared:
        with lock:
            made.append(1)
        return real(data)

    pictures._picture = counting
    results = pictures.pictures(piece, rows)
    for taken in range(1, 21):
        next(results)
        assert len(made) <= taken + 8
    results.close()


def test_engine_that_reads_words_alone_gets_no_picture(chain):
    pictures, piece, _ = maker(chain, "photos", "text")
    assert list(pictures.pictures(piece, piece.read())) == [Prepared()] * 4


def test_frames_of_a_clip_are_the_middles_of_twelve_parts(chain):
    pictures, _, reader = maker(chain, "films", "pixels", side=320)
    (found,) = pictures.pictures(None, pl.DataFrame(clip("bikes.mp4", 10, 250, size=(640, 272))))
    reader.close()
    numbers = [10 + 20 * part + 10 for part in range(12)]
    with VideoDecoder() as decoder:
        expected = decoder.frames(real_clip(), numbers, short_side_px=136)
    assert np.array_equal(found.frames, expected)
    assert found.frames.shape == (12, 136, 320, 3)
    assert np.allclose(found.seconds, [(number - 10) / 25 for number in numbers], atol=1e-3)


def test_encoded_frames_of_a_clip_show_the_pixels(chain):
    row = pl.DataFrame(clip("bikes.mp4", 0, 100, size=(640, 272)))
    both = []
    for takes in ("pixels", "encoded"):
        pictures, _, reader = maker(chain, "films", takes, side=200, frames=3)
        both += pictures.pictures(None, row)
        reader.close()
    pixels, encoded = both
    assert encoded.frames is None
    assert encoded.seconds == pixels.seconds
    assert pixels.frames.shape == (3, 85, 200, 3)
    for frame, picture in zip(pixels.frames, encoded.pictures, strict=True):
        assert np.abs(decode_image(picture.data, max_pixels=10**6).astype(int) - frame).mean() < 2


@pytest.mark.parametrize("threads", [1, 3])
def test_stretches_of_a_long_clip_are_made_each_by_itself_in_one_pass(chain, threads):
    spans = cut(0, 180, 45.0)
    assert spans == [(0, 60), (60, 120), (120, 180)]
    rows = pl.DataFrame(clip("long.mp4", 0, 180, *spans) + clip("bikes.mp4", 0, 12, size=(640, 272)))
    pictures, _, reader = maker(chain, "films", "pixels", threads=threads)
    found = list(pictures.pictures(None, rows))
    decoded = sum(decoder.counts["decoded"] for _, decoder in reader.decoders._free)
    reader.close()
    with VideoDecoder() as decoder:
        path = Path(reader.source.store.url) / "long.mp4"
        expected = decoder.frames(path, [number * 5 + 2 for number in range(36)])
        decoder.frames(real_clip(), range(12))
        alone = decoder.counts["decoded"]
    assert np.array_equal(np.concatenate([one.frames for one in found[:3]]), expected)
    assert np.allclose([second for one in found[:3] for second in one.seconds], np.arange(36) * 1.25 + 0.5, atol=1e-3)
    assert len(found[3].frames) == 12
    assert decoded <= alone * 1.1


def test_clip_of_few_frames_gives_what_it_has_and_a_broken_film_its_reason(chain):
    pictures, _, reader = maker(chain, "films", "encoded", side=64)
    store = reader.source.store
    store.put("none.mp4", b"this is no film")
    rows = clip("long.mp4", 20, 25) + clip("none.mp4", 0, 9) + clip("long.mp4", 0, 500)
    short, broken, beyond = pictures.pictures(None, pl.DataFrame(rows))
    reader.close()
    assert len(short.pictures) == len(short.seconds) == 5
    assert broken.reason == "not_a_video"
    assert beyond.reason == "changed_since_ingest"


def test_upright_film_is_bounded_by_its_longer_side(chain):
    pictures, _, reader = maker(chain, "films", "pixels", side=100, frames=1)
    make_clip(Path(reader.source.store.url) / "tall.mp4", "-vf", "crop=100:200,setsar=1", "-frames:v", "8")
    found = list(pictures.pictures(None, pl.DataFrame(clip("tall.mp4", 0, 8, size=(100, 200)))))
    assert [one.frames.shape for one in found] == [(1, 100, 50, 3)]
    lies = list(pictures.pictures(None, pl.DataFrame(clip("tall.mp4", 0, 8, size=(10, 20)))))
    assert [one.frames.shape for one in lies] == [(1, 100, 50, 3)]
    reader.close()


# Long clips in stretches.


def cut(start: int, end: int, seconds: float, long_seconds: float = 20.0) -> list[tuple[int, int]]:
    """Return the frames of a clip's stretches, after looking at what else is said of them."""
    row = {"start_frame": start, "end_frame": end, "start_seconds": 5.0, "end_seconds": 5.0 + seconds}
    found = stretches(row, long_seconds)
    assert [one["piece"] for one in found] == list(range(len(found)))
    assert {one["pieces"] for one in found} == {len(found)}
    assert (found[0]["start_seconds"], found[-1]["end_seconds"]) == (5.0, pytest.approx(5.0 + seconds))
    assert all(one["end_seconds"] == other["start_seconds"] for one, other in pairwise(found))
    return [(one["start_frame"], one["end_frame"]) for one in found]


@given(st.integers(0, 10**6), st.integers(1, 10**5), st.floats(1, 120), st.sampled_from([2.0, 10.0, 20.0]))
def test_stretches_of_any_clip_cover_it_in_equal_parts_of_the_length_that_is_asked(start, frames, fps, long):
    end, seconds = start + frames, frames / fps
    found = cut(start, end, seconds, long)
    lengths = [last - first for first, last in found]
    assert found[0][0] == start and found[-1][1] == end
    assert all(one[1] == other[0] for one, other in pairwise(found))
    assert max(lengths) - min(lengths) <= 1 and min(lengths) >= 1
    if seconds < long * (1 - 1e-9):
        assert len(found) == 1
    if seconds > long * (1 + 1e-9):
        assert len(found) >= min(2, frames)
        assert all(long / 2 - 1 / fps <= length / fps <= long + 1 / fps for length in lengths)


def test_stretches_of_a_clip_that_stands_still_are_told_by_its_times():
    assert cut(0, 100, 50.0) == [(0, 33), (33, 66), (66, 100)]
    assert cut(7, 9, 600.0) == [(7, 8), (8, 9)]
    assert cut(7, 8, 600.0) == [(7, 8)]


def test_stretches_of_exactly_the_length_are_two():
    assert cut(0, 500, 20.0) == [(0, 250), (250, 500)]
    assert len(cut(0, 499, 19.96)) == 1


def test_stretches_of_a_table_without_times_are_told_by_its_frames():
    row = {"start_frame": 50, "end_frame": 300, "fps": 10.0}
    found = stretches(row, 20.0)
    assert [(one["start_seconds"], one["end_seconds"]) for one in found] == [(5.0, 17.5), (17.5, 30.0)]
    assert found == stretches(row | {"start_seconds": 5.0, "end_seconds": 30.0}, 20.0)
