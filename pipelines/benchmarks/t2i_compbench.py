"""T2I-CompBench: colours, shapes, textures, relations and their mixtures, ten pictures a prompt (Huang et al. 2023).

Layout read from github.com/Karine-Huang/T2I-CompBench: Readme.md and GORS_finetune/inference_eval.py (a line of
`color_val.txt` and its like is a prompt up to a tab; pictures are `samples/{prompt}_{number:06d}.png`, numbered through
the whole file), BLIPvqa_eval/BLIP_vqa.py, UniDet_eval/2D_spatial_eval.py and CLIPScore_eval/CLIP_similarity.py (sort
`samples` by that number and read the prompt off the name up to its first `_`; the folder may hold nothing else),
3_in_1_eval/3_in_1.py (ten neighbours are one prompt's). A category is one prompt file and one output folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.errors import RecipeError
from tokenmill.pipelines.benchmarks.benchmark import (
    Asked,
    LeftOut,
    Output,
    Prompts,
    Score,
    TextFile,
    is_file_name,
)


@dataclass(frozen=True, kw_only=True)
class T2ICompBench:
    """`samples`: pictures a prompt."""

    samples: Annotated[int, Field(ge=1)] = 10

    title: ClassVar = "T2I-CompBench"
    is_video: ClassVar = False
    guidance: ClassVar = 5.0
    scored: ClassVar = ""
    endings: ClassVar = (".txt",)
    paper: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "Emu3": {"color": 0.6107},
        "Emu3, rewriter": {"color": 0.7913},
    }

    def prompts(self, files: Sequence[TextFile]) -> Prompts:
        """Read one category's prompts, a line each."""
        if len(files) != 1:
            raise RecipeError(
                f"T2I-CompBench is drawn a category at a time (color_val.txt, …), found {len(files)} files"
            )
        asked, left_out = [], []
        for number, line in enumerate(files[0].text.splitlines()):
            prompt = line.split("\t")[0]
            names = [f"{prompt}_{number * self.samples + sample:06d}.png" for sample in range(self.samples)]
            reason = "no_prompt" if not prompt.strip() else "" if all(map(is_file_name, names)) else "no_file_name"
            if reason:
                left_out.append(LeftOut(where=f"{files[0].name}, line {number + 1}", reason=reason))
                continue
            outputs = tuple(Output(file=f"samples/{name}", samples=(sample,)) for sample, name in enumerate(names))
            category = _category(files[0].name)
            asked.append(Asked(name=str(number), prompt=prompt.strip(), outputs=outputs, row={"category": category}))
        return Prompts(asked=tuple(asked), left_out=tuple(left_out))

    def scores(self, files: Sequence[TextFile]) -> list[Score]:
        """Read `vqa_result.json` of one or several categories: [{"question_id", "answer"}], a row a picture."""
        return [_score(file) for file in files]


def _category(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix(".txt").removesuffix("_val")


def _score(file: TextFile) -> Score:
    try:
        rows: list[dict[str, Any]] = json.loads(file.text)
        answers = [float(row["answer"]) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise RecipeError(f"{file.name}: no vqa_result.json of T2I-CompBench's ({error!r})") from error
    if not answers:
        raise RecipeError(f"{file.name}: no answer in it")
    measure = _category(file.label) if file.label else file.name
    return Score(measure=measure, value=sum(answers) / len(answers), count=len(answers))
