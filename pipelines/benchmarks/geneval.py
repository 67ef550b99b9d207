"""GenEval: 553 prompts of six kinds, four pictures each, looked at by an object detector (Ghosh et al. 2023).

Layout read from github.com/djghosh13/geneval: README.md (`00000/samples/0000.png`, `00000/metadata.jsonl` with the
prompt's own line), evaluation/evaluate_images.py (reads folders of digits and in them pictures called so; needs `tag`
and `prompt` in the line) and evaluation/summary_scores.py (the overall score is the mean of the six kinds' means over
pictures, so kinds count alike though they have 80 to 100 prompts).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.errors import RecipeError
from tokenmill.pipelines.benchmarks.benchmark import Asked, LeftOut, Output, Prompts, Score, TextFile, lines_of


@dataclass(frozen=True, kw_only=True)
class GenEval:
    """`samples`: pictures a prompt."""

    samples: Annotated[int, Field(ge=1)] = 4

    title: ClassVar = "GenEval"
    is_video: ClassVar = False
    guidance: ClassVar = 5.5
    scored: ClassVar = ""
    endings: ClassVar = (".jsonl",)
    paper: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "Emu3": {"overall": 0.54},
        "Emu3, rewriter": {"overall": 0.66},
    }

    def prompts(self, files: Sequence[TextFile]) -> Prompts:
        """Read `evaluation_metadata.jsonl`; folders are numbered by its lines, bad ones too."""
        if len(files) != 1:
            raise RecipeError(f"GenEval has one prompt file (evaluation_metadata.jsonl), found {len(files)}")
        asked, left_out = [], []
        for number, line in enumerate(lines_of(files[0].text)):
            try:
                asked.append(self._asked(number, line))
            except ValueError as error:
                left_out.append(LeftOut(where=f"{files[0].name}, line {number + 1}", reason=str(error)))
        return Prompts(asked=tuple(asked), left_out=tuple(left_out))

    def _asked(self, number: int, line: str) -> Asked:
        row = _row(line)
        folder = f"{number:05d}"
        outputs = [
            Output(file=f"{folder}/samples/{sample:04d}.png", samples=(sample,)) for sample in range(self.samples)
        ]
        return Asked(
            name=folder,
            prompt=row["prompt"].strip(),
            outputs=tuple(outputs),
            beside={f"{folder}/metadata.jsonl": line},
            row={"tag": row["tag"]},
        )

    def scores(self, files: Sequence[TextFile]) -> list[Score]:
        """Read `results.jsonl`: a line a picture with `tag` and `correct`."""
        correct: dict[str, list[bool]] = defaultdict(list)
        for file in files:
            for number, line in enumerate(lines_of(file.text), 1):
                try:
                    row = json.loads(line)
                    correct[row["tag"]].append(bool(row["correct"]))
                except (ValueError, TypeError, KeyError) as error:
                    raise RecipeError(f"{file.name}, line {number}: no result of GenEval's ({error!r})") from error
        if not correct:
            raise RecipeError("GenEval's results.jsonl has no line")
        kinds = [Score(measure=tag, value=sum(found) / len(found), count=len(found)) for tag, found in correct.items()]
        overall = sum(kind.value for kind in kinds) / len(kinds)
        return [*kinds, Score(measure="overall", value=overall, count=sum(map(len, correct.values())))]


def _row(line: str) -> dict[str, Any]:
    """Parse a line; raises ValueError with the reason as its text."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError("not_json") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise ValueError("no_prompt")
    if not isinstance(row.get("tag"), str):
        raise ValueError("no_tag")
    return row
