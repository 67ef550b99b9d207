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
from tokenmill.generate.canvas import latent_frames
from tokenmill.generate.drawing import Drawing
from tokenmill.generate.grammar import VisionGrammar
from tokenmill.generate.known_words import told_letters
from tokenmill.generate.opened_model import OpenedModel
from tokenmill.generate.prompts import drawing_prompt
from tokenmill.manifests.identity import sha256_hex
from tokenmill.pipelines.sources.metadata import key_or_none
from tokenmill.settings_generate import MOST_SAMPLES, DrawingJob
from tokenmill.tokenize.segments import VisionSegment
from tokenmill.tokenize.vocabulary import Vocabulary

_LARGEST_SEED = 2**62


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

    def drawing(self, sample: int) -> Drawing:
        """Return one of its samples as the sampler takes it."""
        return Drawing(
            prompt=self.prompt, height=self.rows, width=self.columns, frames=self.frames, fps=self.fps,
            seconds=self.seconds, negative=self.negative, seed=self.seeds[sample],
        )  # fmt: skip


def asked_row(number: int, row: Mapping[str, Any] | SampleError, job: DrawingJob, model: OpenedModel) -> AskedRow:
    """Read a row, filled up with the job's settings.

    Raises:
        SampleError: `empty_prompt`, `bad_value` (a column that is no number, …), `bad_size` (no multiple of what a code
            stands for), `too_long` for the context, `unknown_script`, `bad_text`, or what made the row unreadable.
    """
    if isinstance(row, SampleError):
        raise row
    row = {name: value for name, value in row.items() if name == job.prompt_field or name in job.row_keys}
    prompt, negative = text_of(row, job.prompt_field, ""), text_of(row, "negative", job.negative)
    if not prompt.strip():
        raise SampleError("empty_prompt", f"{job.prompt_field} is missing or empty")
    height, width = (whole_of(row, name, getattr(job, name)) for name in ("height", "width"))
    for name, pixels in (("height", height), ("width", width)):
        if pixels % model.vision.spatial_factor:
            told = f"{name} {pixels} is no multiple of {model.vision.spatial_factor} pixels a code"
            raise SampleError("bad_size", told)
    frames, fps, seconds = _clip(row, job, model)
    asked = AskedRow(
        number=number,
        key=key_of(row) or f"{number:06d}",
        prompt=prompt,
        negative=negative,
        frames=frames,
        rows=height // model.vision.spatial_factor,
        columns=width // model.vision.spatial_factor,
        fps=fps,
        seconds=seconds,
        seeds=_seeds(number, row, job),
    )
    _check_ids(asked, model)
    return asked


def check_words(vocabulary: Vocabulary, text: str) -> None:
    """Refuse a text of which the vocabulary tells less than half; raises SampleError `unknown_script`."""
    known, letters = told_letters(vocabulary, text)
    if 2 * known < letters:
        raise SampleError("unknown_script", f"the vocabulary knows {known} of the {letters} letters")


def sample_seed(seed: int, number: int, sample: int) -> int:
    """Give the seed of a sample from the job's: 31 bits that differ from row to row, so no two pictures share luck."""
    return int(sha256_hex(f"{seed}:{number}:{sample}".encode())[:8], 16) >> 1


def _check_ids(asked: AskedRow, model: OpenedModel) -> None:
    vocabulary = model.model.vocabulary
    picture = VisionSegment(asked.frames, asked.rows, asked.columns, 0, asked.fps, asked.seconds)
    check_words(vocabulary, asked.prompt)
    words = max(len(drawing_prompt(vocabulary, text, picture)) for text in (asked.prompt, asked.negative))
    needed = words + VisionGrammar(vocabulary, asked.rows, asked.columns, asked.frames).num_ids
    if needed > model.context:
        grid = f"{asked.frames}×{asked.rows}×{asked.columns}"
        told = f"prompt and a grid of {grid} codes need {needed} ids; the model's context holds {model.context}"
        raise SampleError("too_long", told)


def _clip(row: Mapping[str, Any], job: DrawingJob, model: OpenedModel) -> tuple[int, float | None, float | None]:
    """Return latent frames, fps and seconds; a row's `seconds: null` is a picture in a job of clips."""
    seconds = None if row.get("seconds", ...) is None else _number(row, "seconds", job.seconds)
    if seconds is None:
        return 1, None, None
    fps = _number(row, "fps", job.fps)
    assert fps is not None
    window = model.vision.temporal_factor
    steps = latent_frames(window, frames=None, seconds=seconds, fps=fps)
    return steps, fps, round(steps * window / fps, 3)


def _seeds(number: int, row: Mapping[str, Any], job: DrawingJob) -> tuple[int, ...]:
    samples = whole_of(row, "samples", job.samples, most=MOST_SAMPLES)
    if row.get("seed") is None:
        return tuple(sample_seed(job.seed, number, sample) for sample in range(samples))
    first = whole_of(row, "seed", 0, least=0, most=_LARGEST_SEED)
    return tuple(first + sample for sample in range(samples))


def key_of(row: Mapping[str, Any]) -> str:
    """Return a row's own key; empty where it has none."""
    return (key_or_none(row.get("key")) or "").encode("utf-8", "backslashreplace").decode()


def text_of(row: Mapping[str, Any], name: str, otherwise: str) -> str:
    """Return a column's text, or `otherwise`; raises SampleError for what is none."""
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


def whole_of(row: Mapping[str, Any], name: str, otherwise: int, *, least: int = 1, most: int = 2**31) -> int:
    """Return a column's whole number, or `otherwise`; raises SampleError `bad_value` for what is none in this range."""
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
