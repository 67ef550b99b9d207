"""Judge all models' exhibits and the tokenizer: one JSON object, kind by kind, each score beside its ceiling and chance.

A control "fails as it must" if no judge puts it above its chance level: pictures against prompts dealt out anew, answers
against the best constant answer and their own dealt out, clips against a place that is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.toyworld.exhibits import (
    CONTEXT,
    NEW,
    answers_of,
    asked_questions,
    clips_of,
    extended_motions,
    opened,
    picture_prompts,
    pictures_of,
)
from benchmarks.toyworld.judge_ceiling import motion_ceiling, picture_ceiling
from benchmarks.toyworld.judge_chance import at_chance
from benchmarks.toyworld.judge_motion_scores import score_motions
from benchmarks.toyworld.judge_questions import score_answers
from benchmarks.toyworld.judge_scores import score_pictures
from benchmarks.toyworld.sizes import Size

CONTROLS = ("shuffled", "untrained")


def judged(drawn: Mapping[str, Path], export: Path, size: Size) -> dict[str, Any]:
    """Judge what each model made; `export` names the vision tokenizer that all of them share."""
    both = opened(export)
    asked, questions, motions = picture_prompts(size), asked_questions(size), extended_motions(size)
    window = both.vision.temporal_factor
    found: dict[str, Any] = {}
    for model, folder in drawn.items():
        pictures = score_pictures(asked, pictures_of(folder, both))
        answers = score_answers([question for _, question in questions], answers_of(folder, both))
        clips = score_motions(motions, clips_of(folder, both), CONTEXT * window)
        found[model] = {
            "pictures": [one.to_json() | {"at_chance": _told(one.right.value, one.chance)} for one in pictures],
            "answers": [one.to_json() | {"at_chance": _told(one.right.value, one.level)} for one in answers],
            "clips": [one.to_json() for one in clips],
        }
    pictures_through = picture_ceiling(asked, both.vision)
    clips_through = motion_ceiling(motions, both.vision, CONTEXT * window, NEW * window)
    ceiling = {
        "pictures": [one.to_json() for one in pictures_through.decoded],
        "pictures_drawn": [one.to_json() for one in pictures_through.drawn],
        "pictures_quality": pictures_through.quality.to_json(),
        "clips": [one.to_json() for one in clips_through.decoded],
        "clips_quality": clips_through.quality.to_json(),
    }
    return {"models": found, "ceiling": ceiling, "controls_above_chance": _above_chance(found)}


def _told(score: float, level: Any) -> dict[str, Any] | None:
    if level is None:
        return None
    compared = at_chance(score, level)
    return {"chance": level.mean, "low": level.low, "high": level.high, "above": compared.above}


def _above_chance(found: Mapping[str, Any]) -> list[str]:
    """Name every judge that puts a control above chance; clips where it is nearer the truth than a frozen place."""
    told = []
    for control in (name for name in CONTROLS if name in found):
        for what in ("pictures", "answers"):
            told += [
                f"{control}: {what} {one['kind']} {one.get('form', '')} {one['split']}"
                for one in found[control][what]
                if one["split"] == "all" and one.get("form", "all") == "all" and (one["at_chance"] or {}).get("above")
            ]
        told += [
            f"{control}: clips {one['kind']}"
            for one in found[control]["clips"]
            if one["kind"] == "all" and (one["times_better_than_frozen"] or 0) > 1
        ]
    return told
