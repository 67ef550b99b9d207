"""From prompts to what is drawn, one request a sample, with all checks before the first id.

The seeds of a prompt are `seed`, `seed + 1`, … whatever other prompts stand beside it: another prompt in the list, or
more samples of each, leave what was drawn before as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tokenmill import __version__
from tokenmill.errors import RecipeError
from tokenmill.generate.canvas import Canvas, check_room
from tokenmill.generate.drawing import Drawing
from tokenmill.generate.known_words import check_words
from tokenmill.generate.opened_model import OpenedModel
from tokenmill.generate.prompts import drawing_prompt
from tokenmill.generate.sampling import Sampling
from tokenmill.tokenize.segments import VisionSegment

_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A prompt, and how often it is drawn; `where` names it in messages (`prompt 3`, `prompts.txt line 7`)."""

    prompt: str
    canvas: Canvas
    negative: str = ""
    seed: int = 0
    samples: int = 1
    where: str = "prompt"


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawingRequest:
    """One drawing, and what its file will say of it."""

    drawing: Drawing
    about: Mapping[str, Any]


def drawing_requests(model: OpenedModel, asked: Sequence[Asked], sampling: Sampling) -> list[DrawingRequest]:
    """Give the requests of all prompts, samples of one prompt behind each other.

    Raises:
        RecipeError: an empty prompt, one in a script that the vocabulary lacks, a drawing that the context can't hold,
            or a model that was trained without pictures.
    """
    identity = model.identity()
    return [request for one in asked for request in _of_prompt(model, one, sampling, identity)]


def _of_prompt(
    model: OpenedModel, asked: Asked, sampling: Sampling, identity: Mapping[str, str]
) -> Iterator[DrawingRequest]:
    prompt, negative = (text.encode("utf-8", "replace").decode() for text in (asked.prompt, asked.negative))
    if not prompt.strip():
        raise RecipeError(f"{asked.where}: is empty; say what to draw")
    if asked.samples < 1:
        raise RecipeError(f"{asked.where}: {asked.samples} samples; has to be at least 1")
    notes = [*_checked(model, asked, prompt, negative)]
    canvas = asked.canvas
    for seed in range(asked.seed, asked.seed + asked.samples):
        drawing = Drawing(
            prompt=prompt,
            height=canvas.height,
            width=canvas.width,
            frames=canvas.frames,
            fps=canvas.fps,
            seconds=canvas.seconds,
            negative=negative,
            seed=seed,
        )
        yield DrawingRequest(drawing=drawing, about=about_drawing(drawing, sampling, identity, notes))


def about_drawing(
    drawing: Drawing, sampling: Sampling, identity: Mapping[str, str], notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Give everything that decides about a drawing, and what was noted, as JSON values."""
    clip = {} if drawing.fps is None else {"fps": drawing.fps, "seconds": drawing.seconds}
    return {
        "schema": _SCHEMA,
        "prompt": drawing.prompt,
        "negative": drawing.negative,
        "seed": drawing.seed,
        "grid": [drawing.height, drawing.width],
        "latent_frames": drawing.frames,
        **clip,
        **asdict(sampling),
        **identity,
        "tokenmill": __version__,
        **({"notes": list(notes)} if notes else {}),
    }


def _checked(model: OpenedModel, asked: Asked, prompt: str, negative: str) -> Iterator[str]:
    """Check texts and sizes; yields what there is to note."""
    vocabulary, canvas = model.model.vocabulary, asked.canvas
    for what, text in ((asked.where, prompt), (f"the negative of {asked.where}", negative)):
        if note := check_words(vocabulary, text, what):
            yield note
    picture = VisionSegment(canvas.frames, canvas.height, canvas.width, 0, canvas.fps, canvas.seconds)
    longest = max(len(drawing_prompt(vocabulary, text, picture)) for text in (prompt, negative))
    check_room(canvas, longest, model.context)
    area = model.area("image" if canvas.fps is None else "video")
    factor = model.vision.spatial_factor
    pixels = canvas.height * canvas.width * factor**2
    if model.areas and not area.min_area <= pixels <= area.max_area:
        yield f"{pixels} pixels a frame; the model was trained on {area.min_area} to {area.max_area}"
