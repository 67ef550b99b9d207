"""Scores of drawn pictures by kind of prompt, each beside its chance level, as dataclasses that become JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.toyworld.judge_chance import Chance, Interval, chance, wilson
from benchmarks.toyworld.judge_kinds import Verdict, fits_of, judge
from benchmarks.toyworld.judge_pixels import Pixels
from benchmarks.toyworld.judge_reading import Reading, read
from benchmarks.toyworld.world import PROMPT_KINDS, Prompt

SPLITS = ("all", "seen", "unseen")


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a kind of prompt scored in a split: strict, by GenEval's looser rule, by chance, and what was wrong."""

    kind: str
    split: str
    right: Interval
    geneval: Interval
    chance: Chance | None
    faults: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Describe it for a machine."""
        return asdict(self)


def score_pictures(prompts: Sequence[Prompt], pictures: Sequence[Pixels], *, seed: int = 0) -> list[Score]:
    """Score pictures (HWC uint8), one a prompt, by kind and split; kinds and splits without prompts are left out."""
    return score_readings(prompts, [read(picture) for picture in pictures], seed=seed)


def score_readings(prompts: Sequence[Prompt], readings: Sequence[Reading], *, seed: int = 0) -> list[Score]:
    """Score what was read from pictures already.

    Raises ValueError unless there is one reading a prompt.
    """
    if len(prompts) != len(readings):
        raise ValueError(f"{len(prompts)} prompts, {len(readings)} pictures")
    scores = []
    for kind in PROMPT_KINDS:
        of_kind = [place for place, prompt in enumerate(prompts) if prompt.kind == kind]
        asked, found = [prompts[place] for place in of_kind], [readings[place] for place in of_kind]
        verdicts = [judge(prompt, reading) for prompt, reading in zip(asked, found, strict=True)]
        fits = fits_of(asked, found)
        for split in SPLITS:
            chosen = [place for place, prompt in enumerate(asked) if _is_in(split, prompt)]
            if chosen:
                own = [verdicts[place] for place in chosen]
                scores.append(_score(kind, split, own, chance([fits[np.ix_(chosen, chosen)]], seed=seed)))
    return scores


def _is_in(split: str, prompt: Prompt) -> bool:
    return split == "all" or (split == "unseen") == prompt.unseen


def _score(kind: str, split: str, verdicts: Sequence[Verdict], level: Chance | None) -> Score:
    return Score(
        kind=kind,
        split=split,
        right=wilson(sum(verdict.right for verdict in verdicts), len(verdicts)),
        geneval=wilson(sum(verdict.geneval for verdict in verdicts), len(verdicts)),
        chance=level,
        faults=dict(Counter(verdict.fault for verdict in verdicts if verdict.fault).most_common()),
    )
