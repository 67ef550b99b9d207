"""The twelve sets by which the Emu3 paper measures understanding, as lmms-eval scores them, beside the paper's figures.

The paper publishes neither prompts nor which half of a set it took, so a figure of the harness is comparable with
another figure of the harness; with the paper's it is to a point or two. Where it does not say, the choice is ours and
`told` says so. The mean of twelve takes OCRBench out of 1,000 as a tenth, which gives the paper's 62.1.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.errors import RecipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderstandingSet:
    """One set.

    Attributes:
        tasks: names in lmms-eval; the first is what `lmms_command` runs, the others are read as well.
        metric: of the task, where `scale` makes it the paper's unit.
        paper: Emu3's figure (P Tab., EMU3.md §6).
        told: what to know of the comparison.
    """

    name: str
    tasks: tuple[str, ...]
    metric: str
    scale: float
    paper: float
    full: float = 100.0
    told: str = ""


_JUDGE = "scored by a judge over OpenAI's protocol: set OPENAI_API_KEY and OPENAI_API_URL"
_OWN_HALF = "the paper does not say which half; test goes to a server"
SETS = (
    UnderstandingSet(name="SEED-Bench (image)", tasks=("seedbench",), metric="seed_image", scale=100, paper=68.2),
    UnderstandingSet(
        name="OCRBench", tasks=("ocrbench",), metric="ocrbench_accuracy", scale=1000, paper=687, full=1000
    ),
    UnderstandingSet(name="MM-Vet", tasks=("mmvet",), metric="gpt_eval_score", scale=1, paper=37.2, told=_JUDGE),
    UnderstandingSet(
        name="POPE", tasks=("pope",), metric="pope_f1_score", scale=100, paper=85.2, told="F1, as LLaVA gives it"
    ),
    UnderstandingSet(
        name="VQAv2", tasks=("vqav2_val",), metric="exact_match", scale=100, paper=75.1, told=f"val; {_OWN_HALF}"
    ),
    UnderstandingSet(name="GQA", tasks=("gqa",), metric="exact_match", scale=100, paper=60.3),
    UnderstandingSet(name="TextVQA", tasks=("textvqa_val",), metric="exact_match", scale=100, paper=64.7, told="val"),
    UnderstandingSet(name="ChartQA", tasks=("chartqa",), metric="relaxed_overall", scale=100, paper=68.6),
    UnderstandingSet(name="AI2D", tasks=("ai2d",), metric="exact_match", scale=100, paper=70.0),
    UnderstandingSet(name="RealWorldQA", tasks=("realworldqa",), metric="exact_match", scale=100, paper=57.4),
    UnderstandingSet(name="MMMU", tasks=("mmmu_val",), metric="mmmu_acc", scale=100, paper=31.6, told="val"),
    UnderstandingSet(
        name="MMBench",
        tasks=("mmbench_en_dev_static", "mmbench_en_dev"),
        metric="gpt_eval_score",
        scale=1,
        paper=58.5,
        told=f"English, dev, letters read without a judge; {_OWN_HALF}",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a run of the harness says of a set: in the paper's unit; `asked` of `of` documents."""

    set: UnderstandingSet
    value: float
    asked: int | None
    of: int | None

    @property
    def is_partial(self) -> bool:
        """Whether a `--limit` left documents out."""
        return self.asked is not None and self.of is not None and self.asked < self.of


def lmms_command(pretrained: str, *, device: str = "cuda", batch_size: int = 8, output: str = "results") -> str:
    """Give the command that runs all twelve."""
    tasks = ",".join(one.tasks[0] for one in SETS)
    arguments = [
        "lmms-eval", "--model", "tokenmill", "--model_args", f"pretrained={pretrained}", "--device", device,
        "--tasks", tasks, "--batch_size", str(batch_size), "--output_path", output, "--log_samples",
    ]  # fmt: skip
    return shlex.join(arguments)


def read_scores(places: Iterable[str | Path]) -> list[Score]:
    """Read results of lmms-eval: its `*_results.json` files, or folders that hold them; a later one wins.

    Raises:
        RecipeError: a place holds no results, or none of any of the twelve sets.
    """
    files = [file for place in places for file in _files(Path(place))]
    found: dict[str, Score] = {}
    for file in files:
        results = _read(file)
        counts = results.get("n-samples") or {}
        for one in SETS:
            for task in one.tasks:
                value = _value(results["results"].get(task) or {}, one.metric)
                if value is not None:
                    number = counts.get(task) or {}
                    found[one.name] = Score(
                        set=one, value=value * one.scale, asked=number.get("effective"), of=number.get("original")
                    )
    if not found:
        names = ", ".join(task for one in SETS for task in one.tasks)
        raise RecipeError(f"{', '.join(map(str, files))}: results of none of the twelve sets ({names})")
    return [found[one.name] for one in SETS if one.name in found]


def mean_of(scores: Sequence[Score]) -> tuple[float, float]:
    """Give the mean in percent of these sets, and the paper's of the very same."""
    ours = sum(score.value * 100 / score.set.full for score in scores) / len(scores)
    paper = sum(score.set.paper * 100 / score.set.full for score in scores) / len(scores)
    return ours, paper


def rows_of(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Give a row a set, those without a score too, and the mean of those that have one at the end."""
    known = {score.set.name: score for score in scores}
    rows = [_row(one, known.get(one.name)) for one in SETS]
    ours, paper = mean_of(scores)
    told = "" if len(scores) == len(SETS) else "of the sets that are there"
    return [*rows, {"set": f"mean of {len(scores)}", "score": round(ours, 2), "paper": round(paper, 2), "told": told}]


def table_of(scores: Sequence[Score]) -> str:
    """Lay the rows out for a terminal."""
    lines = [f"{'set':20} {'score':>8} {'paper':>8}"]
    for row in rows_of(scores):
        score = "-" if row["score"] is None else f"{row['score']:.1f}"
        lines.append(f"{row['set']:20} {score:>8} {row['paper']:>8.1f}  {row['told']}".rstrip())
    return "\n".join(lines)


def _row(one: UnderstandingSet, score: Score | None) -> dict[str, Any]:
    told = [one.told] if one.told else []
    if score is not None and score.is_partial:
        told.insert(0, f"only {score.asked:,} of {score.of:,} documents")
    value = None if score is None else round(score.value, 2)
    return {"set": one.name, "task": one.tasks[0], "score": value, "paper": one.paper, "told": "; ".join(told)}


def _files(place: Path) -> list[Path]:
    """List a folder's results in the order of their dates; tasks put files of their own with such names beside them."""
    if place.is_file():
        return [place]
    found = sorted(place.rglob("*_results.json"), key=lambda file: file.name)
    chosen = [file for file in found if isinstance(_content(file).get("results"), dict)]
    if not chosen:
        raise RecipeError(f"{place}: no results of lmms-eval; give what --output_path named, or a *_results.json in it")
    return chosen


def _read(file: Path) -> dict[str, Any]:
    results = _content(file)
    if not isinstance(results.get("results"), dict):
        raise RecipeError(f'{file}: no results of lmms-eval (it has no "results")')
    return results


def _content(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{file}: no results of lmms-eval ({error})") from error
    return content if isinstance(content, dict) else {}


def _value(found: Mapping[str, Any], metric: str) -> float | None:
    """Return a metric's value, of whichever filter: the harness's keys are `metric,filter`."""
    values = [value for key, value in found.items() if key.partition(",")[0] == metric]
    return next((float(value) for value in values if isinstance(value, int | float)), None)
