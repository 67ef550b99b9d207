"""Write what the judges found into docs/toyworld.md, between its markers: model, ceiling, controls, chance.

    python -m benchmarks.toyworld.table toyworld-out/results.json docs/toyworld.md

The trade-off: the table holds shares and their 95 % intervals, not the faults; `results.json` has all of it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenmill.errors import RunError

BEGIN, END = "<!-- toyworld: begin -->", "<!-- toyworld: end -->"
_NAMES = {"yes_no": "yes or no", "colour": "colour", "relation": "relation", "motion": "motion (clips)", "counting": "counting"}


def write_table(results: Path, document: Path) -> None:
    """Put the tables of a run between the markers of a document.

    Raises:
        RunError: the document lacks the markers.
    """
    text = document.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise RunError(f"{document}: has no place for the table; it wants {BEGIN} and {END}, once each")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    found = json.loads(results.read_text(encoding="utf-8"))
    staged = document.with_name(f"{document.name}.writing")
    staged.write_text(f"{before}{BEGIN}\n{render(found)}\n{END}{after}", encoding="utf-8")
    os.replace(staged, document)


def render(found: Mapping[str, Any]) -> str:
    """Return the tables as Markdown."""
    sampler = found["sampler"]
    told = (
        f"Sampler: guidance {sampler['guidance']:g}, top-k {sampler['top_k']}, temperature 1, chosen among "
        f"{len(sampler['tried'])} settings by {sampler['prompts']} validation prompts that are not reported."
    )
    above = found["controls_above_chance"]
    controls = "No judge puts a control above chance." if not above else f"Above chance: {'; '.join(above)}."
    parts = [_pictures(found), _answers(found), _clips(found), [told, controls]]
    return "\n\n".join("\n".join(lines) for lines in parts)


def _pictures(found: Mapping[str, Any]) -> list[str]:
    """Tell shares of pictures that are right."""
    lines = [
        "| pictures that are right | n | model | ceiling | share of it | shuffled | untrained | chance |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ceiling = {(one["kind"], one["split"]): one["right"]["value"] for one in found["ceiling"]["pictures"]}
    for one in _rows(found, "mixed", "pictures"):
        best = ceiling[one["kind"], one["split"]]
        share = f"{one['right']['value'] / best:.2f}" if best else "–"
        lines.append(
            f"| {_named(one['kind'], one['split'])} | {one['right']['n']} | {_interval(one['right'])} | {best:.2f} | {share} | "
            f"{_control(found, 'shuffled', 'pictures', one)} | {_control(found, 'untrained', 'pictures', one)} | {_chance(one)} |"
        )
    return lines


def _answers(found: Mapping[str, Any]) -> list[str]:
    """Tell shares of answers that are right, word for word."""
    lines = ["| answers that are right | n | model | shuffled | untrained | chance |", "|---|---|---|---|---|---|"]
    for one in _rows(found, "mixed", "answers"):
        lines.append(
            f"| {_named(one['kind'], one['split'])} | {one['right']['n']} | {_interval(one['right'])} | "
            f"{_control(found, 'shuffled', 'answers', one)} | {_control(found, 'untrained', 'answers', one)} | {_chance(one)} |"
        )
    return lines


def _clips(found: Mapping[str, Any]) -> list[str]:
    """Tell how far things are off where a clip went on."""
    lines = [
        "| clips that go on, 16 frames | clips | px off, median | frozen place | times better | there | colour kept | ceiling, px | shuffled, px | untrained, px |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    others = {name: _by_kind(found["models"][name]["clips"]) for name in ("shuffled", "untrained")}
    ceiling = _by_kind(found["ceiling"]["clips"])
    for one in found["models"]["mixed"]["clips"]:
        kind = one["kind"]
        lines.append(
            f"| {kind} | {one['clips']} | {_px(one['moving'])} | {_px(one['frozen'])} | {one['times_better_than_frozen'] or 0:.1f} | "
            f"{_share(one['found'])} | {_share(one['colour_kept'])} | {_px(ceiling[kind]['moving'])} | "
            f"{_px(others['shuffled'][kind]['moving'])} | {_px(others['untrained'][kind]['moving'])} |"
        )
    return lines


def _rows(found: Mapping[str, Any], model: str, what: str) -> Iterator[Mapping[str, Any]]:
    """Yield a kind's rows: seen and unseen combinations apart where there are both."""
    rows: Sequence[Mapping[str, Any]] = [
        one for one in found["models"][model][what] if one.get("form", "all") == "all" and one["split"] != "all"
    ]
    yield from rows


def _control(found: Mapping[str, Any], model: str, what: str, like: Mapping[str, Any]) -> str:
    for one in _rows(found, model, what):
        if (one["kind"], one["split"]) == (like["kind"], like["split"]):
            return f"{one['right']['value']:.2f}"
    return "–"


def _chance(one: Mapping[str, Any]) -> str:
    level = one["at_chance"]
    return "–" if level is None else f"{level['chance']:.2f}"


def _named(kind: str, split: str) -> str:
    return _NAMES.get(kind, kind.replace("_", " ")) + (", unseen combinations" if split == "unseen" else "")


def _interval(right: Mapping[str, Any]) -> str:
    return f"**{right['value']:.2f}** ({right['low']:.2f}–{right['high']:.2f})"


def _by_kind(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {one["kind"]: one for one in rows}


def _px(errors: Mapping[str, Any] | None) -> str:
    return "–" if errors is None else f"{errors['median']:.1f}"


def _share(share: Mapping[str, Any] | None) -> str:
    return "–" if share is None else f"{share['value']:.2f}"


if __name__ == "__main__":
    write_table(Path(sys.argv[1]), Path(sys.argv[2]))
