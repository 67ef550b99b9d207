"""Whether a picture's caption says anything: length, language, repetition, and the captions that are none.

Of captions on the web a good part is file names, addresses, dates and `image may contain` boilerplate. Null wherever
the source has no caption; a caption of white space is empty and has length 0.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import polars as pl
from pydantic.dataclasses import dataclass

from tokenmill.filters.character_classes import CATEGORIES, SPACE, UNICODE, counts_of
from tokenmill.filters.language import Language
from tokenmill.filters.scorer import Columns, Picture, fingerprint_of
from tokenmill.filters.text_units import plain_units
from tokenmill.words import units_of

_LETTERS = [place for place, category in enumerate(CATEGORIES) if category[0] in "LM"]
_CONTROL = CATEGORIES.index("Cc")
_LANGUAGE = Language()
_EXTENSIONS = "jpe?g|jpe|png|gif|webp|bmp|tiff?|heic|heif|avif|svg|raw|cr2|nef|arw|dng|psd|mp4|mov|pdf"
_CAMERA = (
    "img|dsc[fn]?|dscn|pict?|p|imag|image|photo|picture|pxl|mvimg|screenshot|screen shot|scan|fb_img|wp|sam|gopr|mg|"
    "vlcsnap"
)
_FILE_NAME = re.compile(
    rf"[\w ()+,.@~-]{{0,200}}\.(?:{_EXTENSIONS})"
    rf"|_?(?:{_CAMERA})[\s_-]*+(?:\d[\d_-]++|(?<=[_-])\d)(?:[\s_()-]*+\w{{0,8}})?"
    r"|[0-9a-f]{16,}|(?:[^\W\d]|-)*+\d[\w-]*_[\w-]{0,200}|\d{5,}", re.IGNORECASE,
)  # fmt: skip
_NAME_CHARS = 300  # no file name and no date is longer, and longer ones are not looked at: patterns run back and forth
_URL = re.compile(
    r"(?:[a-z][a-z0-9+.-]{1,20}://|www\.)\S+|[\w-]+(?:\.[\w-]+)*\.(?:com|net|org|io|co|de|fr|ru|cn|jp|uk)(?:/\S*)?",
    re.I,
)
_MONTH = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_DATE = re.compile(
    r"(?:\d{1,4}[-/.年]\d{1,2}[-/.月]\d{1,4}日?(?:[T ,]+\d{1,2}[:.h]\d{2}(?:[:.]\d{2})?)?"
    rf"|(?:\d{{1,2}}(?:st|nd|rd|th)?\s+)?(?:{_MONTH})[a-z]*\.?\s*(?:\d{{1,2}}(?:st|nd|rd|th)?)?,?\s*(?:\d{{4}})?"
    r"|\d{1,2}:\d{2}(?::\d{2})?|(?:19|20)\d{2})", re.IGNORECASE,
)  # fmt: skip
_BOILERPLATE = frozenset(
    """untitled|untitled document|no title|no caption|no description|no image|no image available|image not available|
    image not found|placeholder|placeholder image|default|default image|default title|image|images|photo|photos|picture|
    pictures|pic|img|thumbnail|thumb|logo|icon|banner|avatar|profile picture|profile photo|cover photo|stock photo|
    stock image|stock photography|royalty free stock photo|royalty free stock image|stock vector|stock illustration|
    click to enlarge|click for larger image|click here|view larger image|enlarge image|zoom|image may contain|
    may be an image|loading|null|none|undefined|n a|na|test|alt text|alt|caption|screenshot|share this|read more|
    image by author|getty images|shutterstock|photo credit|advertisement|sin título|ohne titel|sans titre|без названия|
    無題|无标题|タイトルなし""".replace("\n    ", "").split("|")
)
_BOILERPLATE_UNITS = frozenset(tuple(plain_units(phrase)) for phrase in _BOILERPLATE)


@dataclass(frozen=True, kw_only=True)
class CaptionQuality:
    """Figures about a caption; `caption_kind` is text, file_name, url, date, boilerplate, numbers or empty.

    `caption_repetition` is the share of words (characters where a script has no spaces) that stood there before.
    """

    name: ClassVar = "caption_quality"
    version: ClassVar = 2
    takes: ClassVar[Literal["image"]] = "image"
    views: ClassVar = ()
    reads_caption: ClassVar[bool] = True
    batch_size: ClassVar = 64
    columns: ClassVar = {
        "caption_chars": pl.Int32(),
        "caption_words": pl.Int32(),
        "caption_kind": pl.String(),
        "caption_language": pl.String(),
        "caption_language_confidence": pl.Float32(),
        "caption_repetition": pl.Float32(),
        "caption_letter_ratio": pl.Float32(),
        "caption_control_chars": pl.Int32(),
    }

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self, weights=f"{UNICODE} {_LANGUAGE.fingerprint}")

    def score(self, batch: Sequence[Picture]) -> Columns:
        """Measure the captions of pictures; the pictures are not looked at."""
        return caption_columns([picture.caption for picture in batch])


def caption_columns(captions: Sequence[str | None]) -> Columns:
    """Measure captions one by one; a caption that is None has null in every column."""
    blank = dict.fromkeys(CaptionQuality.columns)
    rows = [blank if caption is None else measured(caption) for caption in captions]
    return {column: [row[column] for row in rows] for column in CaptionQuality.columns}


def measured(caption: str) -> dict[str, Any]:
    """Measure one caption; leading and trailing white space does not count."""
    text = caption.strip()
    units = units_of(text)
    folded = [unit.casefold() for unit in units]
    kind = kind_of(text)
    found = _LANGUAGE.score([text]) if kind in ("text", "boilerplate") else None
    counts = counts_of(caption)
    visible = int(counts.sum() - counts[SPACE])
    return {
        "caption_chars": len(text),
        "caption_words": len(units),
        "caption_kind": kind,
        "caption_language": found["language"][0] if found else None,
        "caption_language_confidence": found["language_confidence"][0] if found else None,
        "caption_repetition": 1 - len(set(folded)) / len(folded) if folded else 0.0,
        "caption_letter_ratio": int(counts[_LETTERS].sum()) / visible if visible else 0.0,
        "caption_control_chars": int(counts[_CONTROL]),
    }


def kind_of(caption: str) -> str:
    """Tell what a caption is; `text` is what says something in words."""
    text = unicodedata.normalize("NFKC", caption).strip()
    units = plain_units(text)
    if not text:
        return "empty"
    if _URL.fullmatch(text):
        return "url"
    if len(text) <= _NAME_CHARS and _DATE.fullmatch(text):
        return "date"
    if len(text) <= _NAME_CHARS and _FILE_NAME.fullmatch(text):
        return "file_name"
    if tuple(units) in _BOILERPLATE_UNITS:
        return "boilerplate"
    return "text" if any(char.isalpha() for char in text) else "numbers"
