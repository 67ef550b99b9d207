"""Is a picture right for its prompt? The six kinds of GenEval, judged on what was read from the picture.

`right` is strict: the picture shows what is wanted and nothing else, on the background that is named; it is the score.
`geneval` is the benchmark's own, looser rule, for comparison: more objects than asked for do no harm except in
counting, and neither do smears and backgrounds. A picture full of everything would pass five of six kinds by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from benchmarks.toyworld.judge_chance import Fits
from benchmarks.toyworld.judge_reading import Reading, Seen
from benchmarks.toyworld.world import Prompt, Wanted

MARGIN = 0.1  # of the two widths (heights) together, as in GenEval: nearer than that is no relation
MOST_OBJECTS = 8  # more are no picture of this world; they are not matched one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`fault` names the first thing that is wrong ("" if right): one word, `reason` says more of it."""

    right: bool
    geneval: bool
    fault: str = ""
    reason: str = ""


def judge(prompt: Prompt, reading: Reading) -> Verdict:
    """Judge one picture against one prompt."""
    fault, reason = _fault(prompt, reading)
    return Verdict(right=not fault, geneval=_geneval(prompt, reading), fault=fault, reason=reason)


def _fault(prompt: Prompt, reading: Reading) -> tuple[str, str]:
    wanted = [one for group in prompt.wanted for one in [group] * group.count]
    seen = reading.objects
    if reading.background is None:
        return "unreadable", "no even background can be made out"
    if not seen and not reading.junk:
        return "empty", "nothing is there"
    if reading.junk:
        return "junk", f"{reading.junk} regions are no object"
    if len(seen) != len(wanted):
        return "count", f"{len(seen)} objects, {len(wanted)} wanted: {_named(seen)}"
    if Counter(one.shape for one in seen) != Counter(one.shape for one in wanted):
        return "shape", _named(seen)
    deals = list(_deals(wanted, seen))
    if not deals:
        return "colour", _named(seen)
    if prompt.relation and not any(holds(prompt.relation, deal[0], deal[prompt.wanted[0].count]) for deal in deals):
        return "relation", f"the first is not {prompt.relation} the second"
    if prompt.background and prompt.background != reading.background:
        return "background", f"{reading.background}, {prompt.background} wanted"
    return "", ""


def _deals(wanted: Sequence[Wanted], seen: Sequence[Seen]) -> Iterator[tuple[Seen, ...]]:
    """Give all ways in which each thing wanted is one that was seen."""
    if len(seen) <= MOST_OBJECTS:
        for deal in permutations(seen):
            if all(_is(one, thing) for one, thing in zip(wanted, deal, strict=True)):
                yield deal


def _is(wanted: Wanted, seen: Seen) -> bool:
    return wanted.shape == seen.shape and wanted.colour in (None, seen.colour)


def holds(relation: str, first: Seen, second: Seen) -> bool:
    """Tell whether the first is left of, right of, above or below the second.

    It must be farther that way than across, and by more than `MARGIN`; so one relation holds at most, where GenEval
    lets a diagonal be two.
    """
    dx, dy = first.x - second.x, first.y - second.y
    far = max(abs(dx), abs(dy))
    if abs(dx) == abs(dy) or far <= MARGIN * 2 * (first.radius + second.radius):
        return False
    if abs(dx) > abs(dy):
        return relation == ("left of" if dx < 0 else "right of")
    return relation == ("above" if dy < 0 else "below")


def _geneval(prompt: Prompt, reading: Reading) -> bool:
    """Judge as GenEval does: enough of each thing (exactly so many when counting), the most certain ones related."""
    found = []
    for one in prompt.wanted:
        alike = sorted((thing for thing in reading.objects if _is(one, thing)), key=lambda thing: -thing.likeness)
        if len(alike) < one.count or (prompt.kind == "counting" and len(alike) > one.count):
            return False
        found.append(alike[: one.count])
    if prompt.relation is None:
        return True
    return all(holds(prompt.relation, first, second) for first in found[0] for second in found[1])


def _named(seen: Sequence[Seen]) -> str:
    return ", ".join(f"{thing.colour} {thing.shape}" for thing in seen) or "nothing"


def fits_of(prompts: Sequence[Prompt], readings: Sequence[Reading], *, geneval: bool = False) -> Fits:
    """Judge every picture against every prompt: (prompts, pictures), for the chance level."""
    fits = np.zeros((len(prompts), len(readings)), bool)
    for row, prompt in enumerate(prompts):
        for column, reading in enumerate(readings):
            fits[row, column] = _geneval(prompt, reading) if geneval else not _fault(prompt, reading)[0]
    return fits
