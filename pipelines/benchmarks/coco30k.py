"""MSCOCO-30K: pictures of 30,000 captions of COCO's validation set beside its photographs: FID, CLIP-I and CLIP-T.

Format read from cocodataset.org's `captions_val2014.json` as pycocotools reads it (`images`: id, file_name;
`annotations`: id, image_id, caption). There is no scorer of its own: `likeness.py` measures. Captions are drawn by a
seed, one a photograph, so that no reference counts twice; a list of annotation ids replaces the draw, since published
lists differ and two FIDs are comparable for one list alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.errors import RecipeError
from tokenmill.pipelines.benchmarks.benchmark import Asked, LeftOut, Output, Prompts, Score, TextFile

MEASURES = ("FID", "CLIP-I", "CLIP-T")


@dataclass(frozen=True, kw_only=True)
class Coco30k:
    """Which captions.

    Args:
        number: of captions, drawn by `choice_seed`.
        ids: a file with annotation ids, white space between them, instead of the draw.
    """

    number: Annotated[int, Field(ge=1)] = 30_000
    choice_seed: int = 0
    ids: str = ""

    title: ClassVar = "MSCOCO-30K"
    is_video: ClassVar = False
    guidance: ClassVar = 5.0
    scored: ClassVar = "images"
    endings: ClassVar = (".json",)
    paper: ClassVar[Mapping[str, Mapping[str, float]]] = {"Emu3": {"FID": 12.8, "CLIP-I": 0.689, "CLIP-T": 0.313}}

    def prompts(self, files: Sequence[TextFile]) -> Prompts:
        """Choose captions of `captions_val2014.json`; raises RecipeError for ids that are not in it."""
        if len(files) != 1:
            raise RecipeError(f"MSCOCO-30K has one prompt file (captions_val2014.json), found {len(files)}")
        pictures, captions = _parsed(files[0])
        asked, left_out = [], []
        for row in self._chosen(files[0].name, captions):
            where, prompt = f"{files[0].name}, annotation {row['id']}", " ".join(str(row["caption"]).split())
            if not prompt:
                left_out.append(LeftOut(where=where, reason="no_prompt"))
            elif row["image_id"] not in pictures:
                left_out.append(LeftOut(where=where, reason="no_picture"))
            else:
                output = Output(file=f"images/{row['id']}.png", samples=(0,))
                known = {"image_id": row["image_id"], "reference": pictures[row["image_id"]]}
                asked.append(Asked(name=str(row["id"]), prompt=prompt, outputs=(output,), row=known))
        return Prompts(asked=tuple(asked), left_out=tuple(left_out))

    def _chosen(self, name: str, captions: Mapping[int, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        if self.ids:
            return [self._named(name, captions, text) for text in dict.fromkeys(_words(self.ids))]
        order = sorted(captions)
        random.Random(self.choice_seed).shuffle(order)
        first: dict[int, Mapping[str, Any]] = {}
        for number in order:
            first.setdefault(captions[number]["image_id"], captions[number])
        return list(first.values())[: self.number]

    def _named(self, name: str, captions: Mapping[int, Mapping[str, Any]], text: str) -> Mapping[str, Any]:
        if not text.isdecimal() or int(text) not in captions:
            raise RecipeError(f"{self.ids}: {name} has no annotation {text}")
        return captions[int(text)]

    def scores(self, files: Sequence[TextFile]) -> list[Score]:
        """Read `likeness.json`, which `likeness.py` wrote."""
        found = []
        for file in files:
            try:
                measured = json.loads(file.text)["measures"]
                found += [Score(measure=row["measure"], value=row["value"], count=row["count"]) for row in measured]
            except (ValueError, TypeError, KeyError) as error:
                raise RecipeError(f"{file.name}: no likeness.json of MSCOCO-30K ({error!r})") from error
        return found


def _parsed(file: TextFile) -> tuple[dict[int, str], dict[int, dict[str, Any]]]:
    """Return file names of pictures by their ids, and captions by theirs."""
    try:
        found = json.loads(file.text)
        pictures = {row["id"]: row["file_name"] for row in found["images"]}
        captions = {row["id"]: {key: row[key] for key in ("id", "image_id", "caption")} for row in found["annotations"]}
    except (ValueError, TypeError, KeyError) as error:
        raise RecipeError(f"{file.name}: no captions in COCO's format ({error!r})") from error
    return pictures, captions


def _words(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise RecipeError(f"ids: {path} cannot be read ({error})") from error
