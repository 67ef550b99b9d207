"""All drawings of a call on one picture: a row a prompt, its samples beside each other, the prompt above.

Set in the font that Pillow carries, so the sheet is the same on every machine. That font has only the letters of ASCII
and a few signs: accents are taken off, other scripts become boxes, and how many letters is said; a font file of one's
own (`--font`) has them. 200 tiles of 256 pixels are a picture of 4 megapixels a column; more are left out, and counted.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError

if TYPE_CHECKING:
    from PIL import ImageFont

MOST_TILES = 200
_TILE_PX = 256
_MOST_COLUMNS = 8
_GAP_PX = 8
_LETTERS_PX = 14
_LINE_PX = 18
_MOST_LINES = 4
_STILLS = 4  # of a clip, side by side in its tile
_PAPER, _INK = (255, 255, 255), (0, 0, 0)
_MISSING = "□"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Strip:
    """One row of a sheet: what was asked, and the frames (THWC) of each sample."""

    caption: str
    samples: Sequence[NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A contact sheet as PNG, with what it could not show."""

    data: bytes
    tiles: int
    left_out: int
    letters_missing: int


def contact_sheet(strips: Sequence[Strip], font: str | None = None) -> Sheet:
    """Lay out strips as one picture; raises RecipeError for a font file that is none."""
    from PIL import Image, ImageDraw

    letters = _Letters(font)
    shown, left_out = _limited(strips)
    columns = min(_MOST_COLUMNS, max((len(strip.samples) for strip in shown), default=1))
    width = columns * (_TILE_PX + _GAP_PX) + _GAP_PX
    laid = [_laid_out(strip, letters, columns, width) for strip in shown]
    height = _GAP_PX + sum(one.height for one in laid)
    sheet = Image.new("RGB", (width, max(height, _LINE_PX)), _PAPER)
    pen, top = ImageDraw.Draw(sheet), _GAP_PX
    for one in laid:
        for number, line in enumerate(one.lines):
            pen.text((_GAP_PX, top + number * _LINE_PX), line, fill=_INK, font=letters.font)
        for number, tile in enumerate(one.tiles):
            row, column = divmod(number, columns)
            place = (_GAP_PX + column * (_TILE_PX + _GAP_PX), top + one.caption_px + row * (one.tile_px + _GAP_PX))
            sheet.paste(Image.fromarray(tile), place)
        top += one.height
    stream = BytesIO()
    sheet.save(stream, format="PNG")
    tiles = sum(len(one.tiles) for one in laid)
    return Sheet(data=stream.getvalue(), tiles=tiles, left_out=left_out, letters_missing=letters.missing)


@dataclass(frozen=True, slots=True, eq=False)
class _LaidOut:
    lines: list[str]
    tiles: list[NDArray[np.uint8]]
    columns: int

    @property
    def caption_px(self) -> int:
        return len(self.lines) * _LINE_PX + _GAP_PX // 2

    @property
    def tile_px(self) -> int:
        return max((len(tile) for tile in self.tiles), default=0)

    @property
    def height(self) -> int:
        rows = -(-len(self.tiles) // self.columns)
        return self.caption_px + rows * (self.tile_px + _GAP_PX) + _GAP_PX


def _laid_out(strip: Strip, letters: _Letters, columns: int, width: int) -> _LaidOut:
    text = letters.shown(strip.caption)
    wide = max(10, int((width - 2 * _GAP_PX) / letters.font.getlength("n")))
    lines = textwrap.wrap(text, wide, max_lines=_MOST_LINES, placeholder=" …") or [""]
    return _LaidOut(lines, [_tile(frames) for frames in strip.samples], columns)


def _limited(strips: Sequence[Strip]) -> tuple[list[Strip], int]:
    """Keep the first tiles; returns how many are left out, too."""
    kept: list[Strip] = []
    room = MOST_TILES
    for strip in strips:
        if room:
            kept.append(Strip(caption=strip.caption, samples=strip.samples[:room]))
            room -= len(kept[-1].samples)
    return kept, sum(len(strip.samples) for strip in strips) - (MOST_TILES - room)


def _tile(frames_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fit a picture, or stills of a clip two by two, into a tile; small ones are enlarged by whole numbers."""
    stills = frames_THWC[np.linspace(0, len(frames_THWC) - 1, min(_STILLS, len(frames_THWC))).round().astype(int)]
    if len(stills) == _STILLS:
        pairs = [np.concatenate(list(pair), axis=1) for pair in (stills[:2], stills[2:])]
        return _fitted(np.concatenate(pairs))
    return _fitted(np.concatenate(list(stills), axis=1))


def _fitted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    longer = max(image.shape[:2])
    if longer <= _TILE_PX:
        times = _TILE_PX // longer
        return image.repeat(times, axis=0).repeat(times, axis=1)
    height, width = (max(1, round(side * _TILE_PX / longer)) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


class _Letters:
    """A font that knows what it lacks."""

    def __init__(self, file: str | None) -> None:
        from PIL import ImageFont

        try:
            loaded = ImageFont.load_default(_LETTERS_PX) if file is None else ImageFont.truetype(file, _LETTERS_PX)
        except OSError as error:
            raise RecipeError(f"--font {file}: not a font that can be read ({error})") from error
        if not isinstance(loaded, ImageFont.FreeTypeFont):
            raise RecipeError("this Pillow was built without FreeType, which the contact sheet is set with")
        self.font: ImageFont.FreeTypeFont = loaded
        self.missing = 0
        self._nothing = self._look("\uffff")

    def shown(self, text: str) -> str:
        """Return the text in letters that the font has."""
        return "".join(map(self._letter, text))

    def _letter(self, letter: str) -> str:
        if letter.isspace():
            return " "
        plain = "".join(one for one in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(one))
        for candidate in (letter, plain):
            if candidate and all(self._look(one) != self._nothing for one in candidate):
                return candidate
        if unicodedata.combining(letter):
            return ""
        self.missing += 1
        return _MISSING

    def _look(self, letter: str) -> Any:
        mask = self.font.getmask(letter)
        return mask.size, bytes(mask)
