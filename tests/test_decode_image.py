"""Pictures of every kind to pixels, and a reason for each that is broken."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import skimage.data
from PIL import Image

from tokenmill.errors import SampleError
from tokenmill.pipelines.decode_image import decode_image
from tokenmill.pipelines.fault_message import fault_message

MAX_PIXELS = 10**7


@pytest.fixture(scope="module")
def photograph():
    return Image.fromarray(skimage.data.astronaut()[:120, :160])


def encoded(image, kind, **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(data, max_pixels=MAX_PIXELS):
    return decode_image(data, max_pixels=max_pixels)


def fault(data, max_pixels=MAX_PIXELS):
    with pytest.raises(SampleError) as caught:
        decoded(data, max_pixels)
    assert not caught.value.transient
    return caught.value


def huge_png(width, height):
    """Claim a size in a PNG that holds next to nothing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = [struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) for body in (header, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("PPM", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG2000", {"irreversible": False}),
    ],
)
def test_lossless_picture_comes_back_as_it_was(photograph, kind, options):
    pixels = decoded(encoded(photograph, kind, **options))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous and pixels.flags.writeable
    assert np.array_equal(pixels, np.asarray(photograph))


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "AVIF", "WEBP"])
def test_lossy_picture_comes_back_alike(photograph, kind):
    difference = decoded(encoded(photograph, kind)).astype(int) - np.asarray(photograph)
    assert np.abs(difference).mean() < 8


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "LAB", "I;16", "I", "LA", "RGBA"])
def test_picture_of_any_mode_becomes_rgb(photograph, mode):
    image = photograph.convert("L")
    if mode.startswith("I"):
        image = Image.fromarray(np.asarray(image).astype(np.uint16 if mode == "I;16" else np.int32) * 257)
    else:
        image = photograph.convert(mode)
    pixels = decoded(encoded(image, "TIFF"))
    assert pixels.shape == (120, 160, 3)
    assert np.abs(pixels.mean() - np.asarray(photograph).mean()) < 20


def test_sixteen_bits_keep_their_high_byte():
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = decoded(encoded(Image.fromarray(ramp), "PNG"))
    assert np.array_equal(pixels[..., 0], ramp >> 8)


def test_transparency_is_laid_on_white():
    red = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    red.paste((255, 0, 0, 255), (0, 0, 2, 2))
    assert decoded(encoded(red, "PNG"))[0].tolist() == [[255, 0, 0]] * 2 + [[255, 255, 255]] * 2


def test_transparent_colour_of_a_palette_is_laid_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    assert decoded(encoded(image, "PNG", transparency=0))[0].tolist() == [[255, 255, 255], [200, 100, 50]]


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=40)
    assert decoded(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(photograph, orientation):
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the turn that undoes each orientation
    stored = photograph if orientation == 1 else photograph.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decoded(encoded(stored, "PNG", exif=exif)), np.asarray(photograph))


def test_broken_exif_does_not_cost_the_picture(photograph):
    data = encoded(photograph, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08" + b"\xff" * 40)
    assert decoded(data).shape == (120, 160, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.6, 0.9, 0.99])
def test_picture_cut_off_is_truncated(photograph, kind, share):
    data = encoded(photograph, kind)
    assert fault(data[: int(len(data) * share)]).reason == "truncated"


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "JPEG2000"])
def test_picture_cut_off_where_the_format_hides_it_is_corrupt_or_truncated(photograph, kind):
    data = encoded(photograph, kind)
    assert fault(data[: len(data) // 2]).reason in ("corrupt", "truncated")


def test_picture_that_claims_too_many_pixels_is_refused_before_decoding():
    found = fault(huge_png(60_000, 60_000))
    assert (found.reason, found.message) == ("too_many_pixels", "60000 x 60000 is more than 10000000 pixels")


def test_picture_of_exactly_the_limit_is_decoded(photograph):
    data = encoded(photograph, "PNG")
    assert decoded(data, max_pixels=120 * 160).shape == (120, 160, 3)
    assert fault(data, max_pixels=120 * 160 - 1).reason == "too_many_pixels"


@pytest.mark.parametrize(
    "data",
    [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<!DOCTYPE html><html></html>", b"%PDF-1.7", b"\0" * 100, b"x"],
)
def test_what_is_no_picture_is_not_an_image(data):
    assert fault(data).reason == "not_an_image"


def test_postscript_is_never_run():
    assert fault(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n").reason == "not_an_image"


def test_no_bytes_are_empty():
    assert fault(b"").reason == "empty"


def test_picture_with_a_damaged_header_is_corrupt(photograph):
    assert fault(encoded(photograph, "JPEG")[:4]).reason == "corrupt"


def test_floating_point_picture_is_unsupported():
    data = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    assert fault(data).reason == "unsupported_pixels"


def test_damaged_pictures_never_raise_anything_but_their_fault(photograph):
    generator = np.random.default_rng(0)
    reasons = set()
    for data in [encoded(photograph, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "PPM")]:
        for _ in range(40):
            damaged = np.frombuffer(data, np.uint8).copy()
            places = generator.integers(0, min(len(damaged), 2000), 5)
            damaged[places] = generator.integers(0, 256, 5)
            try:
                decoded(damaged.tobytes())
            except SampleError as error:
                reasons.add(error.reason)
    assert "corrupt" in reasons


def test_fault_message_is_the_same_wherever_it_happens():
    text = "cannot read <_io.BytesIO object at 0x7f12ab> in '/home/me/tmp.x1/a b.jpg': bad\n  marker 0xFFD9 of 3/4"
    assert fault_message(text) == "cannot read <object> in '<path> b.jpg': bad marker <address> of 3/4"
    assert len(fault_message("x " * 500)) == 200
    assert fault_message(MemoryError()) == "MemoryError"
