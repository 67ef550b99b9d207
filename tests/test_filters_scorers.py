"""Scorers on real pictures: what their columns tell apart, odd sizes, and golden values for each version."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO

import numpy as np
import polars as pl
import pytest
import skimage.data
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tokenmill.errors import RecipeError
from tokenmill.filters.picture import Picture
from tokenmill.filters.scorer import build_scorer
from tokenmill.pipelines.decode_image import decode_image

IMAGE_SCORERS = ["resolution", "colourfulness", "sharpness", "entropy", "perceptual_hash", "sha256", "text_coverage"]
SCORERS = [*IMAGE_SCORERS, "text_statistics"]  # those that need no settings; the others have tests of their own
# What (scorer, version) gives for the picture or text below. A change without a new version is a mistake.
GOLDEN = {
    ("resolution", 1): {"width_px": 512, "height_px": 512, "min_side_px": 512, "aspect": 1.0},
    ("colourfulness", 2): {"colourfulness": 71.8291, "colour_spread": 43.99568, "is_monochrome": False},
    ("entropy", 1): {"entropy_bits": 7.46807},
    ("sharpness", 2): {"sharpness": 860.5974},
    ("sha256", 1): {"sha256": "ab" * 32},
    ("perceptual_hash", 2): {"phash": 14020352518765010888},
    ("text_coverage", 3): {"text_coverage": 0.6579, "text_boxes": 7},
    ("text_statistics", 1): {
        "num_chars": 30,
        "num_words": 8,
        "mean_word_length": 2.75,
        "symbol_ratio": 0.181818,
        "duplicate_line_ratio": 0.5,
        "script": "latin",
    },
}


@pytest.fixture(scope="module")
def astronaut():
    return skimage.data.astronaut()


@pytest.fixture(scope="module")
def photographs():
    names = ["astronaut", "coffee", "chelsea", "rocket", "immunohistochemistry"]
    return [getattr(skimage.data, name)() for name in names]


def score(name, image, **settings):
    """Score one sample; returns its value, or its values by column."""
    values = build_scorer(name, settings).score([_sample(image)])
    row = {column: value for column, (value,) in values.items()}
    return next(iter(row.values())) if len(row) == 1 else row


def _sample(sample):
    return Picture.of(sample, sha256="ab" * 32) if isinstance(sample, np.ndarray) else sample


def jpeg(image, quality):
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return decode_image(file.getvalue(), max_pixels=10**8)


def resized(image, width, height):
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def page(lines, height=20, size=512):
    """Draw lines of text on a grey page; returns it and the letters' share of its area."""
    image = Image.new("RGB", (size, size), (200, 200, 200))
    draw, font, area = ImageDraw.Draw(image), ImageFont.load_default(height), 0.0
    for number in range(lines):
        text = f"The quick brown fox, line {number}"
        draw.text((20, 20 + number * 2 * height), text, fill="black", font=font)
        area += draw.textlength(text, font=font) * height
    return np.asarray(image), area / size**2


@pytest.mark.parametrize("name", SCORERS)
def test_scorer_of_this_version_gives_its_golden_values(name, astronaut):
    scorer = build_scorer(name)
    sample = astronaut if scorer.takes == "image" else "# a line, here\n# a line, here\n"
    if name == "text_coverage":
        sample = np.repeat(skimage.data.page()[..., None], 3, axis=2)
    values = {column: value for column, (value,) in scorer.score([_sample(sample)]).items()}
    golden = GOLDEN[name, scorer.version]
    assert values == {
        column: pytest.approx(value, rel=1e-3) if isinstance(value, float) else value
        for column, value in golden.items()
    }


@pytest.mark.parametrize("name", SCORERS)
def test_scorer_fills_its_columns_with_values_of_their_types(name, photographs):
    scorer = build_scorer(name)
    batch = list(map(_sample, photographs)) if scorer.takes == "image" else ["one two", "", "三 四"]
    scored = scorer.score(batch)
    table = pl.DataFrame(dict(scored), schema=dict(scorer.columns), strict=True)
    assert table.shape == (len(batch), len(scorer.columns))
    one_by_one = [pl.DataFrame(dict(scorer.score([sample])), schema=dict(scorer.columns)) for sample in batch]
    assert table.equals(pl.concat(one_by_one))


@pytest.mark.parametrize("name", IMAGE_SCORERS)
@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (2, 3), (17, 31), (33, 1200)])
def test_image_scorer_takes_any_size(name, size):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    black = np.zeros((*size, 3), np.uint8)
    scorer = build_scorer(name)
    scored = scorer.score([Picture.of(noise), Picture.of(black)])
    table = pl.DataFrame(dict(scored), schema=dict(scorer.columns), strict=True)
    floats = table.select(pl.selectors.float())
    assert floats.width == 0 or floats.select(pl.all().is_finite().all()).row(0) == (True,) * floats.width


def test_resolution_of_wide_picture_has_width_first():
    values = score("resolution", np.zeros((100, 250, 3), np.uint8))
    assert values == {"width_px": 250, "height_px": 100, "min_side_px": 100, "aspect": 2.5}


def test_colourfulness_falls_as_colour_is_taken_out(astronaut):
    grey = np.repeat(astronaut.mean(axis=2, keepdims=True), 3, axis=2)
    mixed = [(share * astronaut + (1 - share) * grey).astype(np.uint8) for share in (1.0, 0.6, 0.3, 0.0)]
    figures = [score("colourfulness", image)["colourfulness"] for image in mixed]
    assert figures == sorted(figures, reverse=True)
    assert figures[-1] == pytest.approx(0, abs=0.5)


def test_monochrome_flag_tells_grey_and_toned_pictures_from_photographs(photographs):
    grey = jpeg(np.repeat(skimage.data.camera()[..., None], 3, axis=2), 80)
    blue_toned = jpeg((grey * np.array([0.4, 0.6, 0.9])).astype(np.uint8), 80)
    assert [score("colourfulness", image)["is_monochrome"] for image in (grey, blue_toned)] == [True, True]
    assert not any(score("colourfulness", image)["is_monochrome"] for image in photographs)


def test_sharpness_falls_with_blur_and_not_with_size(astronaut):
    blurred = [np.asarray(Image.fromarray(astronaut).filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 1, 3)]
    figures = [score("sharpness", image) for image in blurred]
    assert figures[0] > 3 * figures[1] > 9 * figures[2]
    enlarged = score("sharpness", resized(astronaut, 1024, 1024))
    assert enlarged == pytest.approx(figures[0], rel=0.5)


def distance(first, second):
    return (score("perceptual_hash", first) ^ score("perceptual_hash", second)).bit_count()


def test_perceptual_hash_of_near_copies_is_near_and_of_others_far(photographs):
    for image in photographs:
        assert distance(image, jpeg(image, 40)) <= 4
        assert distance(image, resized(image, 300, 300)) <= 4
        assert distance(image, np.minimum(image.astype(int) + 12, 255).astype(np.uint8)) <= 4
    others = [distance(a, b) for i, a in enumerate(photographs) for b in photographs[:i]]
    assert min(others) > 16


def test_perceptual_hash_agrees_with_imagehash_on_photographs(photographs):
    import imagehash

    for image in photographs:
        theirs = int(str(imagehash.phash(Image.fromarray(image))), 16)
        assert (score("perceptual_hash", image) ^ theirs).bit_count() <= 4


def test_perceptual_hash_of_flat_pictures_is_null():
    assert score("perceptual_hash", np.full((90, 120, 3), 255, np.uint8)) is None


def test_text_coverage_grows_with_the_lines_on_a_page():
    pages = [page(lines) for lines in (0, 3, 9)]
    scored = [score("text_coverage", image) for image, _ in pages]
    assert [values["text_boxes"] for values in scored] == [0, 3, 9]
    for (_, area), values in zip(pages[1:], scored[1:], strict=True):
        assert area < values["text_coverage"] < 2.5 * area


def test_text_coverage_of_shrunken_page_stays_about_the_same():
    image, _ = page(8, height=40, size=1024)
    full = score("text_coverage", image, longest_side_px=1024)["text_coverage"]
    assert score("text_coverage", image, longest_side_px=320)["text_coverage"] == pytest.approx(full, rel=0.3)


def test_text_coverage_finds_the_boxes_that_rapidocr_finds():
    from rapidocr import RapidOCR

    engine = RapidOCR(params={"Det.limit_type": "max", "Det.limit_side_len": 512, "Global.log_level": "critical"})
    image, _ = page(7)
    theirs = engine(image[..., ::-1], use_det=True, use_cls=False, use_rec=False).boxes
    ours = score("text_coverage", image, longest_side_px=512)
    assert ours["text_boxes"] == len(theirs)
    sides = np.linalg.norm(np.diff(theirs[:, :3], axis=1), axis=2)
    assert ours["text_coverage"] == pytest.approx(sides.prod(axis=1).sum() / 512**2, rel=0.1)


def test_text_coverage_needs_nothing_of_rapidocr_but_its_weights():
    code = (
        "import sys, numpy as np\n"
        "from tokenmill.filters.scorer import Picture, build_scorer\n"
        "build_scorer('text_coverage').score([Picture.of(np.zeros((64, 64, 3), np.uint8))])\n"
        "sys.exit('rapidocr' in sys.modules or 'requests' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "script"),
    [("Привет, мир", "cyrillic"), ("中文 text 句子測試", "han"), ("नमस्ते", "devanagari"), ("12 + 3", None), ("", None)],
)
def test_text_statistics_name_the_commonest_script(text, script):
    assert score("text_statistics", text)["script"] == script


def test_text_statistics_of_combining_marks_count_no_symbols():
    assert score("text_statistics", "नमस्ते दुनिया")["symbol_ratio"] == 0


def test_text_statistics_of_blank_text_are_zero():
    values = score("text_statistics", " \n\t\n")
    assert {values[column] for column in ("num_words", "mean_word_length", "symbol_ratio", "duplicate_line_ratio")} == {
        0
    }


def test_fingerprints_of_scorers_differ_by_name_and_by_setting():
    scorers = [build_scorer(name) for name in SCORERS]
    changed = [
        build_scorer("sharpness", {"longest_side_px": 256}),
        build_scorer("text_coverage", {"longest_side_px": 320}),
    ]
    assert len({scorer.fingerprint for scorer in scorers + changed}) == len(SCORERS) + 2


def test_fingerprint_of_setting_at_its_default_is_that_of_no_setting():
    assert build_scorer("sharpness", {"longest_side_px": 512}).fingerprint == build_scorer("sharpness").fingerprint


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("beauty", {}, "unknown scorer 'beauty'; allowed: .*colourfulness, .*perceptual_hash, "),
        ("resolution", {"size": 3}, "unknown setting 'size'; allowed: none"),
        ("sharpness", {"longest_side_px": "big"}, "longest_side_px: .*found 'big'"),
        ("sharpness", {"longest_side_px": 3}, "greater than or equal to 16"),
    ],
)
def test_recipe_that_names_a_scorer_wrongly_says_what_is_allowed(name, settings, says):
    with pytest.raises(RecipeError, match=says):
        build_scorer(name, settings)


def test_scorer_of_another_package_is_found_by_its_entry_point(tmp_path, monkeypatch):
    (tmp_path / "brightness.py").write_text(
        "import polars as pl\n"
        "class Brightness:\n"
        "    name, version, takes, batch_size = 'brightness', 1, 'image', 8\n"
        "    columns, fingerprint = {'brightness': pl.Float32()}, 'f' * 64\n"
        "    def __init__(self, *, scale: float = 1.0): self.scale = scale\n"
        "    def score(self, batch): return {'brightness': [self.scale * picture.rgb().mean() for picture in batch]}\n"
    )
    information = tmp_path / "brightness-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: brightness\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[tokenmill.scorers]\nbrightness = brightness:Brightness\n")
    monkeypatch.syspath_prepend(tmp_path)
    scorer = build_scorer("brightness", {"scale": 2})
    assert scorer.score([Picture.of(np.full((2, 2, 3), 7, np.uint8))]) == {"brightness": [14.0]}
    with pytest.raises(RecipeError, match="allowed: scale"):
        build_scorer("brightness", {"size": 2})
    with pytest.raises(RecipeError, match="brightness, "):
        build_scorer("darkness")
