"""`tokenmill verify`: the comparing of `manifests.verify` joined with what knows how segments become documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tokenmill.errors import ManifestError, RecipeError, SampleError
from tokenmill.manifests.findings import Findings
from tokenmill.manifests.storage import open_store
from tokenmill.manifests.verify import examine
from tokenmill.manifests.verify_plan_lengths import PlanChecks

if TYPE_CHECKING:
    from tokenmill.tokenize.vocabulary import Vocabulary


def verify_path(path: str, storage: Mapping[str, Any], *, deep: bool) -> Findings:
    """Verify what lies at a URL or local path; raises ManifestError where nothing could be verified."""
    return examine(open_store(path, storage), "", deep=deep, checks=plan_checks())


def plan_checks() -> PlanChecks:
    """Return what the room `tokenize` knows of plans."""
    from tokenmill.tokenize.templates import TEMPLATES

    return PlanChecks(templates=frozenset(TEMPLATES), lengths=document_lengths)


def document_lengths(rows: pl.DataFrame, description: Mapping[str, Any]) -> list[int | str]:
    """Return how long documents are in the vocabulary of a plan, or why a sample is no such document.

    `rows` has columns `segments` (JSON), `template`, `variant`, `frame` and `frames`. Whole documents are laid out as
    arrays, 0.5 µs each; what that refuses, and stretches of clips, go through the reference.
    """
    from tokenmill.tokenize.layouts import lay_out_many
    from tokenmill.tokenize.templates import TEMPLATES
    from tokenmill.tokenize.vocabulary import build_vocabulary

    vocabulary = build_vocabulary(description["vocabulary"])
    found: list[int | str] = [""] * len(rows)
    table = rows.with_row_index("place")
    for (template,), part in table.filter(pl.col("frames") == 0).group_by("template", maintain_order=True):
        if template not in TEMPLATES:
            continue
        layouts, _ = lay_out_many(part["segments"].to_list(), template, part["variant"].to_numpy(), vocabulary)
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(layouts.length, dtype=np.int64)])
        lengths = (ends[layouts.offsets[1:]] - ends[layouts.offsets[:-1]]).tolist()
        for place, length in zip(part["place"].to_list(), lengths, strict=True):
            found[place] = length or ""
    left = [place for place, length in enumerate(found) if length == ""]
    names = ("segments", "template", "variant", "frame", "frames")
    for place, row in zip(left, rows.select(names)[left].rows(), strict=True):
        found[place] = _length(row, vocabulary)
    return found


def _length(row: tuple[Any, ...], vocabulary: Vocabulary) -> int | str:
    from tokenmill.tokenize.documents import assembled_length
    from tokenmill.tokenize.frames import take_frames
    from tokenmill.tokenize.segments import segments_from_json

    segments, template, variant, frame, frames = row
    try:
        parts: Sequence[Any] = segments_from_json(json.loads(segments))
        parts = take_frames(parts, frame, frames) if frames else parts
        return assembled_length(parts, template, vocabulary, variant)
    except (SampleError, ManifestError, RecipeError, ValueError) as error:
        return str(error)
