"""The contact sheet: the same bytes each time, captions in letters that the font has, and what it left out is said."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFont

from tokenmill.errors import RecipeError
from tokenmill.generate.contact_sheet import MOST_TILES, Strip, contact_sheet


def plain(value: int, frames: int = 1, height: int = 32, width: int = 48) -> np.ndarray:
    """Give frames of one colour, which no letter has."""
    return np.full((frames, height, width, 3), (value, 1, 2), np.uint8)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_sheet_shows_every_sample_under_its_prompt_and_is_the_same_each_time():
    strips = [Strip(caption="red things", samples=[plain(60), plain(90)]), Strip(caption="b", samples=[plain(120)])]
    sheet = contact_sheet(strips)
    assert contact_sheet(strips).data == sheet.data
    found = pixels(sheet.data)
    places = {value: (found == (value, 1, 2)).all(axis=-1) for value in (60, 90, 120)}
    areas = {value: int(place.sum()) for value, place in places.items()}
    assert set(areas.values()) == {5 * 32 * 5 * 48}  # enlarged by whole numbers, up to 256 pixels
    rows = [int(np.argwhere(place)[0][0]) for place in places.values()]
    assert rows[0] == rows[1] < rows[2]
    assert (sheet.tiles, sheet.left_out, sheet.letters_missing) == (3, 0, 0)
    assert contact_sheet([Strip(caption="other", samples=strips[0].samples), strips[1]]).data != sheet.data


def test_clip_is_shown_by_four_of_its_frames():
    frames = np.stack([plain(10 * number + 50, height=16, width=16)[0] for number in range(10)])
    found = pixels(contact_sheet([Strip(caption="", samples=[frames])]).data)
    shown = [number for number in range(10) if (found == (10 * number + 50, 1, 2)).all(axis=-1).any()]
    assert shown == [0, 3, 6, 9]


def test_large_pictures_are_shrunk():
    assert pixels(contact_sheet([Strip(caption="", samples=[plain(70, height=512, width=1024)])]).data).shape[1] == 272


def test_letters_that_the_font_lacks_are_counted_and_accents_taken_off():
    same = contact_sheet([Strip(caption="Kafer", samples=[plain(9)])])
    accents = contact_sheet([Strip(caption="Käfer", samples=[plain(9)])])
    assert (accents.data, accents.letters_missing) == (same.data, 0)
    other = contact_sheet([Strip(caption="中 и 😀", samples=[plain(9)])])
    assert other.letters_missing == 3


def test_font_of_ones_own_is_set_and_one_that_is_none_refused(tmp_path):
    own = ImageFont.load_default(14)
    assert isinstance(own, ImageFont.FreeTypeFont)
    (tmp_path / "own.ttf").write_bytes(own.font_bytes)
    sheet = contact_sheet([Strip(caption="red 中", samples=[plain(9)])], str(tmp_path / "own.ttf"))
    assert (sheet.tiles, sheet.letters_missing) == (1, 1)
    (tmp_path / "none.ttf").write_bytes(b"none")
    with pytest.raises(RecipeError, match="not a font"):
        contact_sheet([], str(tmp_path / "none.ttf"))


def test_more_tiles_than_there_is_room_for_are_counted():
    strips = [Strip(caption=str(number), samples=[plain(9, height=8, width=8)] * 90) for number in range(3)]
    sheet = contact_sheet(strips)
    assert (sheet.tiles, sheet.left_out) == (MOST_TILES, 70)


def test_long_caption_is_wrapped_and_an_empty_sheet_is_a_picture():
    long = pixels(contact_sheet([Strip(caption="word " * 300, samples=[plain(9)])]).data)
    short = pixels(contact_sheet([Strip(caption="word", samples=[plain(9)])]).data)
    assert 0 < long.shape[0] - short.shape[0] < 100
    assert pixels(contact_sheet([]).data).size
