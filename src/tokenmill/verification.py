"""`tokenmill verify`: the comparing of `manifests.verify` joined with what knows how segments become documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from tokenmill.errors import ManifestError, SampleError
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

    `rows` has columns `segments` (JSON), `template`, `variant`, `frame` and `frames`. Equal rows are laid out once.
    """
    from tokenmill.tokenize.vocabulary import build_vocabulary

    vocabulary = build_vocabulary(description["vocabulary"])
    names = ("segments", "template", "variant", "frame", "frames")
    known: dict[tuple[Any, ...], int | str] = {}
    found = []
    for row in rows.select(names).rows():
        if row not in known:
            known[row] = _length(row, vocabulary)
        found.append(known[row])
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
    except (SampleError, ManifestError, ValueError) as error:
        return str(error)
