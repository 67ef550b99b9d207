"""A document as a person reads it: its words with its pictures in their places, as text and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from tokenmill.pipelines.report_html import Markup, element
from tokenmill.tokenize.segments import Segment, TextSegment, VisionSegment

_STYLE = """body { max-width: 46rem; margin: 2rem auto; font: 1rem/1.5 sans-serif; color: #222 }
img, video { max-width: 100%; display: block; margin: 1rem 0 }
p { white-space: pre-wrap; margin: .5rem 0 } small { color: #777 }"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A segment with what it says, or with the file it was written to."""

    segment: Segment
    text: str = ""
    file: str = ""


def has_words(segments: Sequence[Segment]) -> bool:
    """Tell whether a sample is more than a picture or clip with captions: it is shown as a page then."""
    roles = {segment.role for segment in segments if isinstance(segment, TextSegment)}
    visions = sum(isinstance(segment, VisionSegment) for segment in segments)
    return not roles <= {"caption", "stretch"} or visions != 1


def page_text(parts: Sequence[Shown]) -> str:
    """Return the document as plain text; pictures are their files' names in brackets."""
    return "".join(f"[{part.file}]\n" if part.file else f"{_label(part)}{part.text}\n" for part in parts)


def page_html(title: str, parts: Sequence[Shown]) -> str:
    """Return the document as a page beside its pictures; nothing of its words is markup."""
    policy = "default-src 'none'; img-src 'self' file:; media-src 'self' file:; style-src 'unsafe-inline'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("title", title),
        element("style", Markup(_STYLE)),
    )
    return f"<!doctype html>\n{element('html', head, element('body', *map(_shown, parts)))}\n"


def _shown(part: Shown) -> Markup:
    if not part.file:
        return element("p", element("small", _label(part)), part.text)
    source = quote(part.file)
    if part.file.endswith(".mp4"):
        return element("video", src=source, controls="controls")
    return element("img", src=source, alt=part.file)


def _label(part: Shown) -> str:
    """Say who speaks; captions by their number, where a person reads along it is needed."""
    segment = part.segment
    if not isinstance(segment, TextSegment) or segment.role == "body":
        return ""
    number = f" {segment.variant}" if segment.role == "caption" else ""
    return f"{segment.role}{number}: "
