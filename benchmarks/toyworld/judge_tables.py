"""Scores of several runs as Markdown: a row a kind, a column a run, chance and interval beside the model's.

Runs are told by name; the first one is the model, whose chance level, count and interval stand in the row. "Ceiling" is
a run like any other. A second table says of every control whether it is at chance, and of how many it was not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.toyworld.judge_chance import AtChance, Chance, Interval, at_chance
from benchmarks.toyworld.judge_motion_scores import Errors, MotionScore
from benchmarks.toyworld.judge_questions import AnswerScore
from benchmarks.toyworld.judge_scores import Score

NONE = "—"
Row = tuple[str, ...]


def picture_table(runs: Mapping[str, Sequence[Score]]) -> str:
    """Compare drawn pictures by kind and split; beside the strict score the model's by GenEval's looser rule."""
    return _compared(
        {name: {(one.kind, one.split): (one.right, one.chance) for one in scores} for name, scores in runs.items()},
        ("kind", "prompts"),
        {"by GenEval's rule": {(one.kind, one.split): _cell(one.geneval.value) for one in _model(runs)}},
    )


def answer_table(runs: Mapping[str, Sequence[AnswerScore]]) -> str:
    """Compare answers by kind, form and split; the chance level is the higher one of the two."""
    return _compared(
        {
            name: {(one.kind, one.form, one.split): (one.right, one.level) for one in scores}
            for name, scores in runs.items()
        },
        ("kind", "form", "questions"),
        {},
    )


def yes_no_table(runs: Mapping[str, Sequence[AnswerScore]]) -> str:
    """Show POPE's figures of all runs, of all questions answered yes or no."""
    rows = [
        (
            name,
            one.kind,
            one.form,
            *map(_cell, (f.accuracy, f.precision, f.recall, f.f1, f.yes, f.neither)),
            str(one.right.n),
        )
        for name, scores in runs.items()
        for one in scores
        if one.split == "all" and (f := one.yes_no) is not None
    ]
    return _table(("run", "kind", "form", "accuracy", "precision", "recall", "F1", "yes", "neither", "n"), rows)


def motion_table(runs: Mapping[str, Sequence[MotionScore]]) -> str:
    """Compare extended clips by kind of motion: errors in pixels, shares of things' frames."""
    rows = [
        (
            one.kind,
            name,
            _pixels(one.moving),
            NONE if one.moving is None else f"{one.moving.p90:.2f}",
            NONE if one.frozen is None else f"{one.frozen.median:.2f}",
            NONE if one.times_better_than_frozen is None else f"{one.times_better_than_frozen:.1f} ×",
            *map(_share, (one.found, one.returns, one.colour_kept, one.shape_kept)),
            f"{one.spurious_per_frame + one.junk_per_frame:.2f}",
            str(one.clips),
        )
        for kind in _in_order(one.kind for scores in runs.values() for one in scores)
        for name, scores in runs.items()
        for one in scores
        if one.kind == kind
    ]
    names = ("motion", "run", "median error px (95 %)", "p90 px", "frozen place px", "better by", "found", "out again")
    return _table((*names, "colour kept", "shape kept", "spurious a frame", "clips"), rows)


def picture_controls(runs: Mapping[str, Sequence[Score]]) -> dict[tuple[str, ...], AtChance]:
    """Compare each score of each control with its own chance level; keys are run, kind and split."""
    return {
        (name, one.kind, one.split): at_chance(one.right.value, one.chance)
        for name, scores in runs.items()
        for one in scores
        if one.chance is not None
    }


def answer_controls(runs: Mapping[str, Sequence[AnswerScore]]) -> dict[tuple[str, ...], AtChance]:
    """Compare each control's answers with their chance level; keys are run, kind, form and split."""
    return {
        (name, one.kind, one.form, one.split): found
        for name, scores in runs.items()
        for one in scores
        if (found := one.at_chance()) is not None
    }


def control_table(found: Mapping[tuple[str, ...], AtChance]) -> str:
    """Say of every control whether it is at chance; the last line counts those that are not.

    At 99 % about one in 200 lies above by luck alone.
    """
    rows = [
        (" · ".join(key), _cell(one.score), _cell(one.chance.mean), f"{one.chance.low:.2f}–{one.chance.high:.2f}",
         str(one.chance.n), "yes" if one.within else "**above**" if one.above else "below")
        for key, one in found.items()
    ]  # fmt: skip
    table = _table(("control", "score", "chance", "99 % of chance", "n", "at chance"), rows)
    return f"{table}\n{sum(one.above for one in found.values())} of {len(found)} above chance.\n"


def _compared(
    runs: Mapping[str, Mapping[Row, tuple[Interval, Chance | None]]],
    names: Row,
    more: Mapping[str, Mapping[Row, str]],
) -> str:
    model = next(iter(runs.values()), {})
    rows = [
        (
            *key,
            *(_cell(scores[key][0].value if key in scores else None) for scores in runs.values()),
            *(column.get(key, NONE) for column in more.values()),
            _cell(None if chance is None else chance.mean),
            str(interval.n),
            f"{interval.low:.2f}–{interval.high:.2f}",
        )
        for key, (interval, chance) in model.items()
    ]
    return _table((*names, *runs, *more, "chance", "n", "95 %"), rows)


def _model(runs: Mapping[str, Sequence[Score]]) -> Sequence[Score]:
    return next(iter(runs.values()), ())


def _table(names: Row, rows: Iterable[Row]) -> str:
    lines = [names, tuple("---" for _ in names), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _cell(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _share(interval: Interval | None) -> str:
    return NONE if interval is None else f"{interval.value:.2f}"


def _pixels(errors: Errors | None) -> str:
    return NONE if errors is None else f"{errors.median:.2f} ({errors.low:.2f}–{errors.high:.2f})"
