"""Judge all models' exhibits and the tokenizer's ceiling: one JSON object of scores by model and what was asked.

`controls_above_chance` names every judge that puts a control above its chance level: pictures against prompts dealt out
anew, answers against the best constant answer and their own dealt out, clips against a place that is frozen. With 99 %
levels and some twenty judges, one in five runs names one by luck alone. Where no control was run it is null.
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
from benchmarks.toyworld.judge_motion_scores import MotionScore, score_motions
from benchmarks.toyworld.judge_questions import AnswerScore, score_answers
from benchmarks.toyworld.judge_scores import Score, score_pictures
from benchmarks.toyworld.judge_tables import answer_controls, picture_controls
from benchmarks.toyworld.sizes import Size

CONTROLS = ("shuffled", "untrained")


def judged(drawn: Mapping[str, Path], export: Path, size: Size) -> dict[str, Any]:
    """Judge what each model made; `export` names the vision tokenizer that all of them share."""
    both = opened(export)
    asked, questions, motions = picture_prompts(size), asked_questions(size), extended_motions(size)
    first, num_frames = CONTEXT * both.vision.temporal_factor, NEW * both.vision.temporal_factor
    pictures: dict[str, list[Score]] = {}
    answers: dict[str, list[AnswerScore]] = {}
    clips: dict[str, list[MotionScore]] = {}
    for model, folder in drawn.items():
        pictures[model] = score_pictures(asked, pictures_of(folder, both))
        answers[model] = score_answers([question for _, question in questions], answers_of(folder, both))
        clips[model] = score_motions(motions, clips_of(folder, both), first)
    through, moved_through = (
        picture_ceiling(asked, both.vision),
        motion_ceiling(motions, both.vision, first, num_frames),
    )
    ceiling = {
        "pictures": [one.to_json() for one in through.decoded],
        "drawn": [one.to_json() for one in through.drawn],
        "quality": through.quality.to_json(),
        "clips": [one.to_json() for one in moved_through.decoded],
        "clips_quality": moved_through.quality.to_json(),
    }
    found = {
        model: {
            "pictures": [one.to_json() for one in pictures[model]],
            "answers": [one.to_json() for one in answers[model]],
            "clips": [one.to_json() for one in clips[model]],
        }
        for model in drawn
    }
    above = _above_chance(pictures, answers, clips) if any(name in drawn for name in CONTROLS) else None
    return {"models": found, "ceiling": ceiling, "controls_above_chance": above}


def _above_chance(
    pictures: Mapping[str, list[Score]],
    answers: Mapping[str, list[AnswerScore]],
    clips: Mapping[str, list[MotionScore]],
) -> list[str]:
    controls = [name for name in CONTROLS if name in pictures]
    of_pictures = picture_controls({name: pictures[name] for name in controls})
    of_answers = answer_controls({name: answers[name] for name in controls})
    told = [" · ".join(key) for key, one in {**of_pictures, **of_answers}.items() if one.above]
    return told + [
        f"{name} · clips · {one.kind}"
        for name in controls
        for one in clips[name]
        if (one.times_better_than_frozen or 0) > 1
    ]
