"""Write what the judges found into docs/toyworld.md, between its markers: model, ceiling, controls, chance.

    python -m benchmarks.toyworld.table toyworld-out/results.json docs/toyworld.md

The trade-off: of questions the page has kinds, not forms, and faults not at all; `results.json` has all of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.toyworld.judge_files import answer_score, motion_score, picture_score
from benchmarks.toyworld.judge_tables import answer_table, motion_table, picture_table
from tokenmill.errors import RunError

BEGIN, END = "<!-- toyworld: begin -->", "<!-- toyworld: end -->"


def write_table(results: Path, document: Path) -> None:
    """Put the tables of a run between the markers of a document.

    Raises:
        RunError: the document lacks the markers.
    """
    text = document.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise RunError(f"{document}: has no place for the table; it wants {BEGIN} and {END}, once each")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    found = json.loads(results.read_text(encoding="utf-8"))
    staged = document.with_name(f"{document.name}.writing")
    staged.write_text(f"{before}{BEGIN}\n{render(found)}\n{END}{after}", encoding="utf-8")
    staged.replace(document)


def render(found: Mapping[str, Any]) -> str:
    """Return the tables as Markdown."""
    models, ceiling = found["models"], found["ceiling"]
    pictures = {name: [picture_score(one) for one in model["pictures"]] for name, model in models.items()}
    first, *others = pictures
    runs = {first: pictures[first], "ceiling": [picture_score(one) for one in ceiling["pictures"]]}
    runs |= {name: pictures[name] for name in others}
    answers = {
        name: [score for one in model["answers"] if (score := answer_score(one)).form == "all"]
        for name, model in models.items()
    }
    clips = {name: [motion_score(one) for one in model["clips"]] for name, model in models.items()}
    clips["ceiling"] = [motion_score(one) for one in ceiling["clips"]]
    parts = [
        f"Pictures that are right:\n\n{picture_table(runs)}",
        f"Answers that are right, word for word:\n\n{answer_table(answers)}",
        f"Clips that go on for 16 frames:\n\n{motion_table(clips)}",
        _told(found),
    ]
    return "\n".join(parts)


def _told(found: Mapping[str, Any]) -> str:
    sampler, quality, moving = found["sampler"], found["ceiling"]["quality"], found["ceiling"]["clips_quality"]
    above = found["controls_above_chance"]
    told = "no control was run" if above is None else "; ".join(above) or "none"
    lines = [
        f"* Tokenizer: {quality['psnr_db']:.1f} dB, SSIM {quality['ssim']:.3f} of pictures; "
        f"{moving['psnr_db']:.1f} dB, {moving['ssim']:.3f} of clips.",
        f"* Sampler: guidance {sampler['guidance']:g}, top-k {sampler['top_k']}, "
        f"temperature {sampler['temperature']:g}, the best of "
        f"{len(sampler['tried'])} settings by {sampler['prompts']} validation prompts, "
        "drawn with seeds that are not reported (of kinds with few wordings the words are the same).",
        f"* Controls above chance (of all kinds, forms and splits, at 99 %): {told}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_table(Path(sys.argv[1]), Path(sys.argv[2]))
