"""Scores written to JSON and taken back, so that a table can be made long after the runs, and by another process.

Dataclasses become dictionaries by their field names; reading builds the same ones again and so refuses what has other
fields. The trade-off: no schema beyond the field names, hence a renamed field makes older files unreadable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.toyworld.judge_ceiling import Quality
from benchmarks.toyworld.judge_chance import Chance, Interval
from benchmarks.toyworld.judge_motion_scores import Errors, MotionScore
from benchmarks.toyworld.judge_questions import AnswerScore, YesNo
from benchmarks.toyworld.judge_scores import Score

_Read = Callable[[Mapping[str, Any]], Any]
_PARTS: Mapping[str, _Read] = {
    "right": lambda fields: Interval(**fields),
    "geneval": lambda fields: Interval(**fields),
    "found": lambda fields: Interval(**fields),
    "returns": lambda fields: Interval(**fields),
    "colour_kept": lambda fields: Interval(**fields),
    "shape_kept": lambda fields: Interval(**fields),
    "chance": lambda fields: Chance(**fields),
    "yes_no": lambda fields: YesNo(**fields),
    "moving": lambda fields: Errors(**fields),
    "frozen": lambda fields: Errors(**fields),
    "still": lambda fields: Errors(**fields),
    "by_latent_frame": tuple,
}


def picture_score(fields: Mapping[str, Any]) -> Score:
    """Take back what `Score.to_json` gave."""
    return Score(**_parts(fields))


def answer_score(fields: Mapping[str, Any]) -> AnswerScore:
    """Take back what `AnswerScore.to_json` gave."""
    return AnswerScore(**_parts(fields))


def motion_score(fields: Mapping[str, Any]) -> MotionScore:
    """Take back what `MotionScore.to_json` gave; the ratio to the frozen place is computed again."""
    return MotionScore(**_parts({name: value for name, value in fields.items() if name != "times_better_than_frozen"}))


def quality(fields: Mapping[str, Any]) -> Quality:
    """Take back what `Quality.to_json` gave."""
    return Quality(**fields)


def _parts(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _PARTS[name](value) if name in _PARTS and value is not None else value for name, value in fields.items()
    }
