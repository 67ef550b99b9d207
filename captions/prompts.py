"""Prompts: words of the recipe in which `{…}` stands for what is known of a sample.

    {caption}                                   a field of the sample; without it the sample fails with `no_field`
    {metadata.exif.make}                        inside a mapping
    {caption|metadata.title|'nothing known'}    the first that says anything; words of our own stand in quotes
    {scores.aesthetic:.1f}                      a number with so many digits behind the point
    {"question": …} or {{caption}}              braces as such: no name behind it, or doubled

No expressions, attributes or calls: a template can show what a sample says, nothing else, and what a sample says is
never read as a template. Rendering a prompt of three fields takes about 15 µs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from tokenmill.captions.captioner import Sample
from tokenmill.captions.draws import drawn_bits
from tokenmill.captions.field_values import look_up, shown
from tokenmill.errors import RecipeError, SampleError
from tokenmill.manifests.identity import digest_of

KNOWN_FIELDS = (
    "key", "source", "modality", "caption", "metadata", "scores", "width_px", "height_px", "seconds", "piece", "pieces",
)  # fmt: skip
"""The top-level names of a sample; `metadata` and `scores` are mappings, `piece` of `pieces` is for long clips."""

_PIECE = re.compile(
    r"(?P<words>[^{}]+)|(?P<double>\{\{|\}\})|\{(?P<field>\s*[^\W\d](?:'[^']*'|\"[^\"]*\"|[^{}'\"])*)\}"
    r"|(?P<single>\}|\{(?!\s*[^\W\d]))"
)
_WAY = re.compile(
    r"\s*(?:'(?P<single>[^']*)'|\"(?P<double>[^\"]*)\""
    r"|(?P<name>[^\W\d]\w*(?:\.[^|'\".]+?)*)(?::\.(?P<digits>\d)f)?)\s*(?P<more>\||$)"
)


@dataclass(frozen=True, slots=True)
class Literal:
    """Words of the recipe."""

    text: str


@dataclass(frozen=True, slots=True)
class Name:
    """A field by its dotted name; `digits` behind the point if it is to be a number."""

    name: str
    digits: int | None


@dataclass(frozen=True, slots=True)
class Field:
    """What stands in braces: ways to fill it, in order."""

    ways: tuple[Name | Literal, ...]


def render(template: str, sample: Sample) -> str:
    """Fill a template.

    Raises:
        SampleError: `no_field`, the sample lacks all that a field could be filled with.
        RecipeError: the template is no template.
    """
    return "".join(part.text if isinstance(part, Literal) else _filled(part, sample) for part in parsed(template))


def fields(template: str) -> tuple[str, ...]:
    """Name the fields a template may look at, in order, each once."""
    parts = [part for part in parsed(template) if isinstance(part, Field)]
    return tuple(dict.fromkeys(way.name for part in parts for way in part.ways if isinstance(way, Name)))


def literals(template: str) -> tuple[str, ...]:
    """Return a template's own words, a piece between two fields each."""
    grouped = groupby(parsed(template), key=lambda part: isinstance(part, Literal))
    return tuple("".join(part.text for part in parts if isinstance(part, Literal)) for own, parts in grouped if own)


def check_template(template: str, allowed: Collection[str] = KNOWN_FIELDS) -> None:
    """Raise RecipeError where braces do not close, or where a field begins with none of the `allowed` names."""
    for name in fields(template):
        if name.partition(".")[0] not in allowed:
            raise RecipeError(
                f"template {_clipped(template)}: unknown field {name!r}; allowed: {', '.join(allowed)}; "
                f"words of your own stand in quotes: {{caption|'{name}'}}"
            )


def prompt_hash(prompts: Sequence[str], system: str) -> str:
    """Return the identity of a column's prompts, 64 hex digits."""
    return digest_of({"prompts": list(prompts), "system": system})


def drawn_prompt(prompts: Sequence[str], key: str, seed: int) -> str:
    """Return the prompt that a sample gets, each equally likely; empty where there is none."""
    if len(prompts) < 2:
        return prompts[0] if prompts else ""
    return prompts[drawn_bits("prompt", seed, key) % len(prompts)]


def request_seed(seed: int, key: str, piece: int = 0) -> int:
    """Return the seed of a question about a sample, or a piece of it: in [0, 2**31)."""
    return drawn_bits(f"request {piece}", seed, key, 31)


@lru_cache(maxsize=1024)
def parsed(template: str) -> tuple[Literal | Field, ...]:
    """Take a template apart; raises RecipeError where it can't be."""
    parts: list[Literal | Field] = []
    place = doubled = 0
    while place < len(template):
        found = _PIECE.match(template, place)
        if found is None:
            raise RecipeError(
                f"template {_clipped(template)}: the field at character {place + 1} does not end; "
                "a brace that is meant as such is written {{ or }}"
            )
        place = found.end()
        if found["field"]:
            parts.append(_field(found, template))
        elif found["double"] and (found[0] == "{{" or doubled):
            doubled += 1 if found[0] == "{{" else -1
            parts.append(Literal(found[0][0]))
        else:  # a brace without a name behind it, as JSON has them, and pairs that close such
            parts.append(Literal(found[0]))
    return tuple(parts)


def _field(found: re.Match[str], template: str) -> Field:
    ways: list[Name | Literal] = []
    written, place, more = found["field"], 0, True
    while more:
        way = _WAY.match(written, place)
        if way is None:
            raise RecipeError(
                f"template {_clipped(template)}: can't read {found[0]!r}; write a name as {{caption}} or "
                "{metadata.title}, a number as {scores.aesthetic:.1f}, words in quotes, a brace as {{ or }}"
            )
        ways.append(_way(way))
        place, more = way.end(), way["more"] == "|"
    return Field(tuple(ways))


def _way(found: re.Match[str]) -> Name | Literal:
    if found["name"]:
        return Name(found["name"], int(found["digits"]) if found["digits"] else None)
    return Literal(found["single"] or found["double"] or "")


def _filled(field: Field, sample: Sample) -> str:
    for way in field.ways:
        if isinstance(way, Literal):
            return way.text
        value = look_up(sample, way.name)
        if way.digits is not None:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            text = f"{value:.{way.digits}f}" if is_number and shown(value) else ""
        else:
            text = shown(value)
        if text:
            return text
    names = [way.name for way in field.ways if isinstance(way, Name)]
    raise SampleError("no_field", f"the template needs {' or '.join(names)}")


def _clipped(template: str) -> str:
    return repr(template if len(template) <= 60 else template[:59] + "…")
