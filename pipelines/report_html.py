"""HTML as nested calls, escaped by construction: only what `element` itself made goes through as it is.

Captions, keys and messages come from samples and are hostile until proven otherwise. A template language would escape
where somebody remembered to; here a plain string can't become markup at all, and the page's own policy forbids scripts.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TypeAlias

_VOID = frozenset({"img", "br", "hr", "meta", "rect", "line", "circle", "path", "polyline"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child: TypeAlias = "str | int | float | Iterable[Child] | None"


def element(name: str, *children: Child, **attributes: str | int | float | None) -> Markup:
    """Return one element; `class_` stands for `class`, `font_size` for `font-size`, a None attribute is left out."""
    given = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    if name in _VOID and not children:
        return Markup(f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Put children side by side, escaping every plain string; None is nothing."""
    return Markup("".join(_text(child) for child in children))


def table(head: Iterable[Child], rows: Iterable[Iterable[Child]], *, numbers: Iterable[int] = ()) -> Markup:
    """Return a table that scrolls sideways where the screen is narrow; columns `numbers` are set to the right."""
    classes = dict.fromkeys(numbers, "number")
    titles = [element("th", title, class_=classes.get(i), scope="col") for i, title in enumerate(head)]
    body = [
        element("tr", *(element("td", cell, class_=classes.get(index)) for index, cell in enumerate(row)))
        for row in rows
    ]
    inner = element("table", element("thead", element("tr", *titles)), element("tbody", *body))
    return element("div", inner, class_="scroll", tabindex=0)


def section(identity: str, title: str, *children: Child) -> Markup:
    """Return a titled section that the navigation can point to."""
    return element("section", element("h2", title), *children, id=identity)


def note(*children: Child) -> Markup:
    """Return a paragraph that explains, or says plainly what is missing."""
    return element("p", *children, class_="note")


def facts_list(facts: Iterable[tuple[str, Child]], *, big: bool = False) -> Markup:
    """Return figures with their names, as small cards; `big` for the head of the page."""
    return element(
        "dl",
        *(element("div", element("dt", name), element("dd", value)) for name, value in facts),
        class_="facts big" if big else "facts",
    )


def count(value: float) -> str:
    """Write a whole number with thousands apart."""
    return f"{value:,.0f}"


def short_number(value: float) -> str:
    """Write a number in at most five characters or so: 0.034, 12.5, 1,234, 5.4M."""
    size = abs(value)
    if size >= 1e9:
        return f"{value / 1e9:.3g}G"
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    return f"{value:,.0f}" if size >= 1e3 or float(value).is_integer() else f"{value:.3g}"


def size(num_bytes: float) -> str:
    """Write an amount of bytes: 12 kB, 3.4 MB, 1.2 TB."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if num_bytes >= factor:
            return f"{num_bytes / factor:,.1f} {unit}"
    return f"{num_bytes / 1e3:,.0f} kB"


def seconds(value: float) -> str:
    """Write a duration as a person would say it."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _attribute(key: str, value: str | int | float) -> str:
    return f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'


def _text(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str | int | float):
        return escape(str(child))
    return join(*child)
