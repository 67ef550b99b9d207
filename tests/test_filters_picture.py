"""Views of a picture: one rule for their scale, the bits Pillow gives, and the same faults for every view."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from tokenmill.errors import SampleError
from tokenmill.filters.colourfulness import Colourfulness
from tokenmill.filters.entropy import Entropy
from tokenmill.filters.perceptual_hash import PerceptualHash
from tokenmill.filters.picture import BASE, Picture, View, luma_of
from tokenmill.filters.sharpness import Sharpness
from tokenmill.pipelines.decode_image import decode_image, open_image

JPEGS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "coarse": {"quality": 10},
    "restarts": {"restart_marker_rows": 1},
}


@pytest.fixture(scope="module")
def photograph():
    return Image.fromarray(skimage.data.astronaut()).resize((1150, 863), Image.Resampling.BICUBIC)


def encoded(image, kind="JPEG", **options):
    file = BytesIO()
    image.save(file, kind, **{"quality": 90, **options})
    return file.getvalue()


def picture(data):
    image = open_image(data, max_pixels=10**8)
    return Picture(image, *image.size, data=data)


def by_pillow(data, mode, scale):
    image = Image.open(BytesIO(data))
    image.draft(mode, tuple(side // scale for side in image.size))
    return np.asarray(image.convert(mode))


@pytest.mark.parametrize(
    ("view", "size", "scale"),
    [
        (View(), (8000, 6000), 1),
        (View(longest_side_px=512), (511, 300), 1),
        (View(longest_side_px=512), (1023, 700), 1),
        (View(longest_side_px=512), (1024, 700), 2),
        (View(longest_side_px=512), (700, 2048), 4),
        (View(longest_side_px=512), (4096, 4096), 8),
        (View(longest_side_px=512), (65_000, 65_000), 8),
        (View(longest_side_px=512), (4096, 127), 4),  # a side of 15 pixels would be too short
        (View(longest_side_px=512), (4096, 20), 1),
        (View(min_side_px=224), (4096, 500), 2),
        (View(min_side_px=224), (4096, 447), 1),
    ],
)
def test_view_of_a_size_has_the_largest_scale_that_leaves_enough_pixels(view, size, scale):
    assert view.scale(*size) == view.scale(*size[::-1]) == scale


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_of_any_make_has_pillows_bits_at_every_scale(photograph, mode, options):
    data = encoded(photograph, **options)
    image = open_image(data, max_pixels=10**8)
    for scale in (1, 2, 4, 8):
        pixels = image("rgb" if mode == "RGB" else "luma", scale)
        assert np.array_equal(pixels, by_pillow(data, mode, scale))
        assert pixels.flags.c_contiguous


def test_grey_jpeg_has_pillows_bits_at_every_scale(photograph):
    data = encoded(photograph.convert("L"))
    image = open_image(data, max_pixels=10**8)
    for scale in (1, 2, 4, 8):
        assert np.array_equal(image("luma", scale), by_pillow(data, "L", scale))
        assert np.array_equal(image("rgb", scale), by_pillow(data, "L", scale)[..., None].repeat(3, axis=2))


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "CMYK"), ("TIFF", "CMYK"), ("PNG", "RGB"), ("WEBP", "RGB")])
def test_picture_that_no_scaled_decoder_takes_is_averaged(photograph, kind, mode):
    data = encoded(photograph.convert(mode), kind)
    seen = picture(data)
    blocks = seen.rgb()[:862].reshape(431, 2, 575, 2, 3).mean((1, 3))
    assert np.abs(seen.view(BASE) - blocks).max() <= 0.5
    assert np.array_equal(seen.luma(), luma_of(seen.rgb()))


def test_jpeg_stored_as_rgb_keeps_its_colours(photograph):
    data = encoded(photograph, keep_rgb=True)
    seen = picture(data)
    assert np.array_equal(seen.rgb(), np.asarray(Image.open(BytesIO(data)).convert("RGB")))
    assert np.abs(seen.luma().astype(int) - luma_of(seen.rgb())).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_every_view_and_the_size(photograph, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "TIFF":
        data = encoded(photograph.resize((144, 108)), kind, tiffinfo={0x0112: orientation})
    else:
        data = encoded(photograph.resize((144, 108)), kind, exif=exif, **({"speed": 10} if kind == "AVIF" else {}))
    flat = Image.open(BytesIO(encoded(photograph.resize((144, 108)), kind))).convert("RGB")
    flat.getexif()[0x0112] = orientation
    wanted = np.asarray(ImageOps.exif_transpose(flat)).astype(int)
    seen = picture(data)
    assert (seen.height_px, seen.width_px) == seen.rgb().shape[:2] == wanted.shape[:2]
    assert np.abs(seen.rgb() - wanted).mean() < 2
    halved = np.asarray(Image.fromarray(wanted.astype(np.uint8)).reduce(2)).astype(int)
    assert np.abs(seen.rgb(longest_side_px=72) - halved).mean() < 4
    assert np.abs(seen.luma(longest_side_px=72) - halved.mean(axis=2)).mean() < 12


def test_picture_of_several_jpegs_has_pillows_bits_of_the_first(photograph):
    data = encoded(photograph, "MPO", save_all=True, append_images=[photograph.rotate(180)])
    assert Image.open(BytesIO(data)).format == "MPO"
    for scale in (1, 4):
        assert np.array_equal(open_image(data, max_pixels=10**8)("rgb", scale), by_pillow(data, "RGB", scale))


def test_png_is_decoded_once_though_its_orientation_may_stand_behind_the_pixels(photograph, monkeypatch):
    loads = []
    load = PngImageFile.load_prepare
    monkeypatch.setattr(PngImageFile, "load_prepare", lambda image: loads.append(image) or load(image))
    picture(encoded(photograph, "PNG")).rgb()
    assert len(loads) == 1


def test_released_picture_holds_no_large_pixels_and_decodes_them_again(photograph):
    seen = picture(encoded(photograph.resize((1500, 1200)), "PNG"))
    before, image = seen.rgb(), seen._decode
    seen.release()
    assert image._whole is None and not seen._held
    assert np.array_equal(seen.rgb(), before)


def test_transparency_is_laid_on_white_strip_by_strip_as_at_once():
    pixels = np.random.default_rng(3).integers(0, 256, (700, 31, 4), np.uint8)
    image = Image.fromarray(pixels)
    at_once = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
    assert np.array_equal(picture(encoded(image, "PNG")).rgb(), np.asarray(at_once))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_truncated_picture_fails_in_every_view(photograph, kind):
    data = encoded(photograph, kind)[:-2000]
    for view in (BASE, View(), View(kind="luma"), View(min_side_px=100)):
        with pytest.raises(SampleError) as caught:
            picture(data).view(view)
        assert caught.value.reason in ("truncated", "corrupt")


def test_jpeg_with_flipped_bytes_has_the_fate_that_pillow_gives_it(photograph):
    sound = bytearray(encoded(photograph.resize((230, 172))))
    random = np.random.default_rng(5)
    fates = set()
    for _ in range(300):
        data = bytearray(sound)
        for place in random.integers(2, len(data), size=3):
            data[place] = random.integers(256)
        fates.add(_fate(bytes(data)))
    assert {"same", "failed"} <= fates and "other" not in fates


def _fate(data):
    try:
        pixels = decode_image(data, max_pixels=10**7)
    except SampleError:
        pixels = None
    try:
        image = Image.open(BytesIO(data))
        image.load()
        theirs = None if image.size != (230, 172) else np.asarray(image.convert("RGB"))
    except Exception:
        return "failed" if pixels is None else "other"
    return "same" if pixels is None or theirs is None or np.array_equal(pixels, theirs) else "other"


def test_picture_decodes_each_view_once_and_lets_go_of_large_ones():
    calls = []

    def decode(kind, scale):
        calls.append((kind, scale))
        return np.zeros((3000 // scale, 4000 // scale, 3), np.uint8)

    seen = Picture(decode, 4000, 3000)
    for _ in range(2):
        seen.view(BASE), seen.rgb(), seen.rgb(longest_side_px=600)
    assert calls == [("rgb", 4), ("rgb", 1)]
    seen.release()
    seen.view(BASE), seen.rgb()
    assert calls == [("rgb", 4), ("rgb", 1), ("rgb", 1)]


def test_exact_sharpness_is_that_of_every_pixel(photograph):
    import cv2

    data = encoded(photograph)
    (exact,) = Sharpness(longest_side_px=None).score([picture(data)])["sharpness"]
    grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert exact == pytest.approx(cv2.Laplacian(grey, cv2.CV_64F).var(), rel=1e-6)


def test_figures_of_scaled_views_stay_close_to_those_of_whole_pictures():
    names = ["astronaut", "coffee", "chelsea", "rocket", "immunohistochemistry"]
    for name in names:
        whole = Image.fromarray(getattr(skimage.data, name)()).resize((1200, 900), Image.Resampling.BICUBIC)
        data = encoded(whole)
        scaled, full = picture(data), Picture.of(decode_image(data, max_pixels=10**8))
        assert scaled.view(BASE).shape[1] == 600
        for scorer, column, tolerance in (
            (Colourfulness(), "colourfulness", 1.0),
            (Entropy(), "entropy_bits", 0.06),
        ):
            (a,), (b,) = scorer.score([scaled])[column], scorer.score([full])[column]
            assert a == pytest.approx(b, abs=tolerance)
        (a,), (b,) = PerceptualHash().score([scaled])["phash"], PerceptualHash().score([full])["phash"]
        assert (a ^ b).bit_count() <= 2
