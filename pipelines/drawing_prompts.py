"""From a row of a table of prompts to what is drawn for it, or why nothing is: pure functions.

All that could go wrong with a row is found here, before the model is asked for anything: a batch that is begun is never
given up for one of its rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenmill.errors import SampleError
from tokenmill.generate.grammar import VisionGrammar
from tokenmill.generate.prompts import drawing_prompt
from tokenmill.manifests.identity import sha256_hex
from tokenmill.pipelines.sources.metadata import key_or_none
from tokenmill.settings_generate import MOST_SAMPLES, DrawingJob
from tokenmill.tokenize.segments import VisionSegment
from tokenmill.tokenize.vocabulary import Vocabulary

_LARGEST_SEED = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """What a model can draw on: its vocabulary and context (ids), and the pixels and frames that a code stands for."""

    vocabulary: Vocabulary
    context: int
    spatial_factor: int
    temporal_factor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedRow:
    """What a row asks for: sizes in codes, one seed a sample; `fps` and `seconds` are those of a clip."""

    number: int
    key: str
    prompt: str
    negative: str
    frames: int
    rows: int
    columns: int
    fps: float | None
    seconds: float | None
    seeds: tuple[int, ...]


def asked_row(number: int, row: Mapping[str, Any] | SampleError, job: DrawingJob, canvas: Canvas) -> AskedRow:
    """Read a row, filled up with the job's settings.

    Raises:
        SampleError: `empty_prompt`, `bad_value` (a column that is no number, …), `bad_size` (no multiple of what a code
            stands for), `too_long` for the context, `unknown_script`, `bad_text`, or what made the row unreadable.
    """
    if isinstance(row, SampleError):
        raise row
    row = {name: value for name, value in row.items() if name == job.prompt_field or name in job.row_keys}
    prompt, negative = _text(row, job.prompt_field, ""), _text(row, "negative", job.negative)
    if not prompt.strip():
        raise SampleError("empty_prompt", f"{job.prompt_field} is missing or empty")
    height, width = (_whole(row, name, getattr(job, name)) for name in ("height", "width"))
    for name, pixels in (("height", height), ("width", width)):
        if pixels % canvas.spatial_factor:
            told = f"{name} {pixels} is no multiple of {canvas.spatial_factor} pixels a code"
            raise SampleError("bad_size", told)
    frames, fps, seconds = _clip(row, job, canvas)
    asked = AskedRow(
        number=number,
        key=_key(row) or f"{number:06d}",
        prompt=prompt,
        negative=negative,
        frames=frames,
        rows=height // canvas.spatial_factor,
        columns=width // canvas.spatial_factor,
        fps=fps,
        seconds=seconds,
        seeds=_seeds(number, row, job),
    )
    _check_ids(asked, canvas)
    return asked


def check_words(vocabulary: Vocabulary, text: str) -> None:
    """Refuse a text of which the vocabulary tells less than half; raises SampleError `unknown_script`."""
    told = vocabulary.text.decode(vocabulary.encode(text).tolist()).casefold()
    letters = [letter for letter in text.casefold() if letter.isalnum()]
    known = sum(letter in told for letter in letters)
    if 2 * known < len(letters):
        raise SampleError("unknown_script", f"the vocabulary knows {known} of the {len(letters)} letters")


def sample_seed(seed: int, number: int, sample: int) -> int:
    """Give the seed of a sample from the job's: 31 bits that differ from row to row, so no two pictures share luck."""
    return int(sha256_hex(f"{seed}:{number}:{sample}".encode())[:8], 16) >> 1


def _check_ids(asked: AskedRow, canvas: Canvas) -> None:
    vocabulary = canvas.vocabulary
    picture = VisionSegment(asked.frames, asked.rows, asked.columns, 0, asked.fps, asked.seconds)
    check_words(vocabulary, asked.prompt)
    words = max(len(drawing_prompt(vocabulary, text, picture)) for text in (asked.prompt, asked.negative))
    needed = words + VisionGrammar(vocabulary, asked.rows, asked.columns, asked.frames).num_ids
    if needed > canvas.context:
        grid = f"{asked.frames}×{asked.rows}×{asked.columns}"
        told = f"prompt and a grid of {grid} codes need {needed} ids; the model's context holds {canvas.context}"
        raise SampleError("too_long", told)


def _clip(row: Mapping[str, Any], job: DrawingJob, canvas: Canvas) -> tuple[int, float | None, float | None]:
    """Return latent frames, fps and seconds; a row's `seconds: null` is a picture in a job of clips."""
    seconds = None if row.get("seconds", ...) is None else _number(row, "seconds", job.seconds)
    if seconds is None:
        return 1, None, None
    fps = _number(row, "fps", job.fps)
    assert fps is not None
    window = canvas.temporal_factor
    steps = max(1, round(seconds * fps / window))
    return steps, fps, round(steps * window / fps, 3)


def _seeds(number: int, row: Mapping[str, Any], job: DrawingJob) -> tuple[int, ...]:
    samples = _whole(row, "samples", job.samples, most=MOST_SAMPLES)
    if row.get("seed") is None:
        return tuple(sample_seed(job.seed, number, sample) for sample in range(samples))
    first = _whole(row, "seed", 0, least=0, most=_LARGEST_SEED)
    return tuple(first + sample for sample in range(samples))


def _key(row: Mapping[str, Any]) -> str:
    return (key_or_none(row.get("key")) or "").encode("utf-8", "backslashreplace").decode()


def _text(row: Mapping[str, Any], name: str, otherwise: str) -> str:
    value = row.get(name)
    if value is None:
        return otherwise
    if not isinstance(value, str):
        raise SampleError("bad_value", f"{name} is no text but {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SampleError("bad_text", f"{name} holds half of a character at {error.start}") from error
    return value


def _whole(row: Mapping[str, Any], name: str, otherwise: int, *, least: int = 1, most: int = 2**31) -> int:
    value = _number(row, name, otherwise, least=least)
    if value is None or value != int(value) or value > most:
        raise SampleError("bad_value", f"{name} is no whole number from {least} to {most}: {row.get(name)!r:.40}")
    return otherwise if row.get(name) is None else int(row[name] if isinstance(row[name], int) else value)


def _number(row: Mapping[str, Any], name: str, otherwise: float | None, *, least: float = 1e-6) -> float | None:
    given = row.get(name)
    if given is None:
        return otherwise
    try:
        value = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not least <= value < math.inf:
        raise SampleError("bad_value", f"{name} is no number from {least:g} on: {given!r:.40}")
    return value
