"""From a parsed JSON object to a document, whatever layout it has; which layouts there are, and how each is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tokenmill.errors import SampleError
from tokenmill.pipelines.sources.laid_out import LaidOut, check_laid_out
from tokenmill.pipelines.sources.layout_pages import mmc4, obelics
from tokenmill.pipelines.sources.layout_preference import preference
from tokenmill.pipelines.sources.layout_segments import segments
from tokenmill.pipelines.sources.layout_turns import llava, messages

_READ: Mapping[str, Callable[[Mapping[str, Any]], LaidOut]] = {
    "obelics": obelics,
    "mmc4": mmc4,
    "llava": llava,
    "messages": messages,
    "preference": preference,
    "segments": segments,
}
_KEYS = {
    "segments": ("segments",),
    "mmc4": ("text_list", "image_info"),
    "llava": ("conversations",),
    "messages": ("messages",),
    "obelics": ("texts", "images"),
    "preference": ("chosen", "rejected"),
}
LAYOUTS = ("auto", *_READ)


def check_layout(layout: str) -> str:
    """Return the name of a layout; raises ValueError for one that there is not."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout: no layout {layout!r}; allowed: {', '.join(LAYOUTS)}")
    return layout


def lay_out(value: Any, layout: str = "auto") -> LaidOut:
    """Read a document's JSON in one of the layouts, or in the one whose keys it has.

    Raises:
        SampleError: it has no layout or several, or contradicts itself; the reasons are in docs/documents.md.
    """
    if not isinstance(value, Mapping):
        raise SampleError("bad_json", f"a document is an object, not {type(value).__name__}")
    return check_laid_out(_READ[layout if layout != "auto" else detected(value)](value))


def detected(value: Mapping[str, Any]) -> str:
    """Return the layout whose keys a JSON has; raises SampleError `unknown_layout` or `ambiguous_layout`."""
    found = [name for name, keys in _KEYS.items() if all(value.get(key) is not None for key in keys)]
    if not found:
        keys = ", ".join(str(key)[:40] for key in list(value)[:12]) or "none"
        raise SampleError("unknown_layout", f"its keys are those of no layout: {keys}")
    if len(found) > 1:
        raise SampleError("ambiguous_layout", f"it may be {' or '.join(found)}; set layout")
    return found[0]
