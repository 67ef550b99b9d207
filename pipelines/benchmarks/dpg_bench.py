"""DPG-Bench: 1,065 long prompts, four pictures of each in a square grid, asked about by a VQA model (Hu et al. 2024).

Layout read from github.com/TencentQQGYLab/ELLA: README.md ("your generated image's filename is the same with the
prompt's filename", four pictures "to 2x2 format"), dpg_bench/compute_dpg_bench.py (cuts at (0, 0), (r, 0), (0, r) and
(r, r) for the resolution r it is told, so pictures are squares; opens every file of the folder; its item is the file
name up to the first dot; `--res-path` ends with the scores) and dpg_bench/dist_eval.sh (`PIC_NUM`, 4).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.errors import RecipeError
from tokenmill.pipelines.benchmarks.benchmark import Asked, LeftOut, Output, Prompts, Score, TextFile

_TOTAL = re.compile(r"^DPG-Bench score: ([\d.eE+-]+)\s*$", re.MULTILINE)
_CATEGORY = re.compile(r"^\t([^\t:]+): ([\d.eE+-]+)\s*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class DpgBench:
    """`samples`: pictures in a grid, 1 to 4 (the scorer's PIC_NUM)."""

    samples: Annotated[int, Field(ge=1, le=4)] = 4

    title: ClassVar = "DPG-Bench"
    is_video: ClassVar = False
    guidance: ClassVar = 5.0
    scored: ClassVar = "images"
    endings: ClassVar = (".txt",)
    paper: ClassVar[Mapping[str, Mapping[str, float]]] = {"Emu3": {"overall": 80.60}, "Emu3, DPO": {"overall": 81.60}}

    def prompts(self, files: Sequence[TextFile]) -> Prompts:
        """Read a folder of texts, a prompt each."""
        asked, left_out = [], []
        for file in files:
            stem = file.name.rsplit("/", 1)[-1].removesuffix(".txt")
            prompt = file.text.strip()
            if prompt and stem:
                output = Output(file=f"images/{stem}.png", samples=tuple(range(self.samples)))
                asked.append(Asked(name=stem, prompt=prompt, outputs=(output,)))
            else:
                left_out.append(LeftOut(where=file.name, reason="no_prompt"))
        return Prompts(asked=tuple(asked), left_out=tuple(left_out))

    def scores(self, files: Sequence[TextFile]) -> list[Score]:
        """Read what the scorer printed or wrote to its `--res-path`: kinds of questions, and the whole."""
        found = []
        for file in files:
            total = _TOTAL.findall(file.text)
            if not total:
                raise RecipeError(f'{file.name}: no line "DPG-Bench score: …", so no result of DPG-Bench\'s')
            coarse = file.text.partition("L1 category scores:")[2].partition("L2 category scores:")[0]
            found += [Score(measure=name, value=float(value)) for name, value in _CATEGORY.findall(coarse)]
            found.append(Score(measure="overall", value=float(total[-1])))
        return found
