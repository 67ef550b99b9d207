"""Whether a server's headers say that a picture must not go into a data set.

`X-Robots-Tag: noai, noimageai, noindex, noimageindex`, as img2dataset honours it, and `TDM-Reservation: 1` (W3C's
text and data mining reservation). A directive may be meant for one agent (`somebot: noai`): those for everybody, for
us and for img2dataset count, since whoever names that one means this use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_DIRECTIVES = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})  # none: noindex and nofollow
_AGENTS = frozenset({"*", "tokenmill", "img2dataset"})
_WITH_VALUES = frozenset({"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"})
_AGENT = re.compile(r"[a-z0-9_.*-]+")


def opted_out(robots_tags: Iterable[str], reservations: Iterable[str] = ()) -> str | None:
    """Return the directive that forbids the use, or None; takes the values of both headers, one text a header line."""
    for line in robots_tags:
        for agent, directive in _directives(line):
            if directive in _DIRECTIVES and (agent is None or agent in _AGENTS):
                return directive
    return "tdm-reservation" if any(value.strip() == "1" for value in reservations) else None


def _directives(line: str) -> Iterable[tuple[str | None, str]]:
    """Yield (agent, directive); an agent speaks for all that follows it in its line, until the next."""
    agent = None
    for item in line.lower().split(","):
        name, colon, rest = (part.strip() for part in item.partition(":"))
        if not colon:
            yield agent, name
        elif name not in _WITH_VALUES and _AGENT.fullmatch(name):
            agent = name
            yield agent, rest.strip()
