"""Interleaved pages: OBELICS' two lists side by side, and MMC4's texts with pictures matched to them.

Sources: Laurençon et al., "OBELICS" (arXiv 2306.16527), columns `images` and `texts`; Zhu et al., "Multimodal C4"
(arXiv 2304.06939), `text_list` and `image_info`. Empty texts of a page are left out: they say nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from tokenmill.errors import SampleError
from tokenmill.pipelines.sources.laid_out import Gallery, LaidOut, list_at
from tokenmill.pipelines.sources.raw_document import RawPart, RawPicture, RawText


def obelics(value: Mapping[str, Any]) -> LaidOut:
    """Lay out a page of OBELICS: at every place either a picture or a text."""
    images, texts = list_at(value, "images"), list_at(value, "texts")
    if len(images) != len(texts):
        raise SampleError("bad_lists", f"{len(images)} images beside {len(texts)} texts")
    gallery, parts = Gallery(), list[RawPart]()
    for place, (image, text) in enumerate(zip(images, texts, strict=True)):
        number = gallery.add(image, place)
        if (number is None) == (not text) and text != "":
            raise SampleError("bad_lists", f"at place {place} there is not either a picture or a text")
        if number is not None:
            parts.append(RawPicture(number=number))
        else:
            parts += _said(text)
    return LaidOut(parts=tuple(parts), references=tuple(gallery.references), used=frozenset(("images", "texts")))


def mmc4(value: Mapping[str, Any]) -> LaidOut:
    """Lay out a document of MMC4: every picture stands before the text that it was matched to."""
    texts = list_at(value, "text_list")
    gallery, before = Gallery(), defaultdict[int, list[int]](list)
    for slot, image in enumerate(list_at(value, "image_info")):
        place = image.get("matched_text_index") if isinstance(image, Mapping) else None
        if type(place) is not int or not 0 <= place < len(texts):
            raise SampleError("bad_lists", f"picture {slot} is matched to none of the texts")
        number = gallery.add(image, slot)
        if number is None:
            raise SampleError("bad_picture", f"picture {slot} has neither image_name nor raw_url")
        before[place].append(number)
    parts = list[RawPart]()
    for place, text in enumerate(texts):
        parts += [RawPicture(number=number) for number in before[place]]
        parts += _said(text)
    used = frozenset(("text_list", "image_info", "similarity_matrix"))
    return LaidOut(parts=tuple(parts), references=tuple(gallery.references), used=used)


def _said(text: Any) -> list[RawText]:
    if not isinstance(text, str):
        raise SampleError("bad_lists", f"a text is {type(text).__name__}")
    return [RawText(text=text)] if text.strip() else []
