"""VBench: clips of 946 prompts in 16 dimensions, five of each (Huang et al. 2024).

Layout read from github.com/Vchitect/VBench: prompts/README.md (`{prompt}-{index}.mp4`, index 0 to 4, each a seed of its
own; 25 clips for `temporal_flickering`, whose scorer first filters for clips of a still camera), vbench/__init__.py
(looks for exactly these names, and takes the ending of whatever the folder lists first, so nothing else may lie there),
VBench_full_info.json (`prompt_en`, `dimension`, `auxiliary_info`), static_filter.py, and scripts/constant.py with
scripts/cal_final_score.py (ranges and weights by which 16 figures become quality, semantic and total score).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    lines_of,
)

STILL = "temporal_flickering"
QUALITY: Mapping[str, tuple[float, float, float]] = {
    "subject_consistency": (0.1462, 1.0, 1),
    "background_consistency": (0.2615, 1.0, 1),
    "temporal_flickering": (0.6293, 1.0, 1),
    "motion_smoothness": (0.706, 0.9975, 1),
    "aesthetic_quality": (0.0, 1.0, 1),
    "imaging_quality": (0.0, 1.0, 1),
    "dynamic_degree": (0.0, 1.0, 0.5),
}
"""Dimension → what counts as 0, what as 1, and its weight."""
SEMANTIC: Mapping[str, tuple[float, float, float]] = {
    "object_class": (0.0, 1.0, 1),
    "multiple_objects": (0.0, 1.0, 1),
    "human_action": (0.0, 1.0, 1),
    "color": (0.0, 1.0, 1),
    "spatial_relationship": (0.0, 1.0, 1),
    "scene": (0.0, 0.8222, 1),
    "appearance_style": (0.0009, 0.2855, 1),
    "temporal_style": (0.0, 0.364, 1),
    "overall_consistency": (0.0, 0.364, 1),
}
_QUALITY_WEIGHT, _SEMANTIC_WEIGHT = 4, 1
_PROMPT_FILES = {"background_consistency": "scene", "aesthetic_quality": "overall_consistency",
                 "imaging_quality": "overall_consistency", "motion_smoothness": "subject_consistency",
                 "dynamic_degree": "subject_consistency"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class VBench:
    """How many clips of which prompts.

    Args:
        samples: clips a prompt.
        still_samples: of a prompt of `temporal_flickering`.
        dimensions: only prompts of these, with commas between them; empty: all.
    """

    samples: Annotated[int, Field(ge=1)] = 5
    still_samples: Annotated[int, Field(ge=1)] = 25
    dimensions: str = ""

    title: ClassVar = "VBench"
    is_video: ClassVar = True
    guidance: ClassVar = 5.0
    scored: ClassVar = "videos"
    endings: ClassVar = (".txt", ".json")
    paper: ClassVar[Mapping[str, Mapping[str, float]]] = {"Emu3": {"total": 80.96}}

    def __post_init__(self) -> None:
        unknown = sorted(self._wanted - {*QUALITY, *SEMANTIC})
        if unknown:
            raise ValueError(f"dimensions: VBench has no {unknown[0]!r}; it has {', '.join([*QUALITY, *SEMANTIC])}")

    @property
    def _wanted(self) -> set[str]:
        return {name.strip() for name in self.dimensions.split(",") if name.strip()}

    def prompts(self, files: Sequence[TextFile]) -> Prompts:
        """Read `VBench_full_info.json`, or files of `prompts_per_dimension`; what comes twice is drawn once."""
        dimensions: dict[str, dict[str, None]] = {}
        left_out, beside = [], {}
        for file in files:
            if file.name.endswith(".json"):
                beside["VBench_full_info.json"] = file.text
            for where, prompt, of in _rows(file):
                if not prompt.strip() or not is_file_name(f"{prompt}-{self.still_samples}.mp4"):
                    left_out.append(LeftOut(where=where, reason="no_file_name" if prompt.strip() else "no_prompt"))
                else:
                    dimensions.setdefault(prompt, {}).update(dict.fromkeys(of))
        asked = tuple(self._asked(prompt, list(of)) for prompt, of in dimensions.items() if self._wants(of))
        return Prompts(asked=asked, left_out=tuple(left_out), beside=beside)

    def _wants(self, dimensions: Iterable[str]) -> bool:
        return not self._wanted or bool(self._wanted & set(dimensions))

    def _asked(self, prompt: str, dimensions: list[str]) -> Asked:
        count = self.still_samples if STILL in dimensions else self.samples
        outputs = [Output(file=f"videos/{prompt}-{sample}.mp4", samples=(sample,)) for sample in range(count)]
        return Asked(name=prompt, prompt=prompt.strip(), outputs=tuple(outputs), row={"dimension": dimensions})

    def scores(self, files: Sequence[TextFile]) -> list[Score]:
        """Read `*_eval_results.json`: dimension → [figure, clips]; the totals only where no dimension lacks."""
        found: dict[str, Score] = {}
        for file in files:
            try:
                for name, (value, clips) in json.loads(file.text).items():
                    found[name] = Score(measure=name, value=float(value), count=len(clips))
            except (ValueError, TypeError, AttributeError) as error:
                raise RecipeError(f"{file.name}: no eval_results.json of VBench's ({error!r})") from error
        scores = [found[name] for name in (*QUALITY, *SEMANTIC) if name in found]
        scores += [score for name, score in found.items() if name not in {*QUALITY, *SEMANTIC}]
        return [*scores, *_totals({name: score.value for name, score in found.items()})]


def _totals(values: Mapping[str, float]) -> list[Score]:
    """Give the quality, semantic and total score in percent, each where all it needs is there."""
    parts = {name: _weighted(values, ranges) for name, ranges in (("quality", QUALITY), ("semantic", SEMANTIC))}
    quality, semantic = parts["quality"], parts["semantic"]
    totals = {name: value for name, value in parts.items() if value is not None}
    if quality is not None and semantic is not None:
        whole = _QUALITY_WEIGHT + _SEMANTIC_WEIGHT
        totals["total"] = (quality * _QUALITY_WEIGHT + semantic * _SEMANTIC_WEIGHT) / whole
    return [Score(measure=name, value=100 * value) for name, value in totals.items()]


def _weighted(values: Mapping[str, float], ranges: Mapping[str, tuple[float, float, float]]) -> float | None:
    if not ranges.keys() <= values.keys():
        return None
    weighted = [(values[name] - low) / (high - low) * weight for name, (low, high, weight) in ranges.items()]
    return sum(weighted) / sum(weight for _, _, weight in ranges.values())


def _rows(file: TextFile) -> Iterator[tuple[str, str, list[str]]]:
    """Yield where a prompt stands, the prompt, and its dimensions."""
    if not file.name.endswith(".json"):
        stem = file.name.rsplit("/", 1)[-1].removesuffix(".txt")
        of = [name for name in (*QUALITY, *SEMANTIC) if _PROMPT_FILES.get(name, name) == stem]
        for number, line in enumerate(lines_of(file.text), 1):
            yield f"{file.name}, line {number}", line.strip(), of
        return
    try:
        rows: list[dict[str, Any]] = json.loads(file.text)
        found = [(str(row["prompt_en"]), [str(name) for name in row["dimension"]]) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise RecipeError(f"{file.name}: no VBench_full_info.json ({error!r})") from error
    for number, (prompt, of) in enumerate(found):
        yield f"{file.name}, entry {number}", prompt, of
