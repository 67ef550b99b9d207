"""Clips made longer than a model's context: a window slides, its first frames are there, the rest is drawn.

Every window is a document of its own, as training had them: its meta tells the grid, the rate and the seconds of the
whole window (P §3: 2 s of context, the next 2 s, and again). Its context are the ids drawn before, never pixels that
were encoded again: of those about 12 % keep their codes (EMU3.md §2). The last window is a whole one too, with more
context where fewer frames are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError, SampleError
from tokenmill.generate.drawing import Drawing
from tokenmill.generate.model import ExportedModel
from tokenmill.generate.pictures import parse_pictures
from tokenmill.generate.sample import draw_documents
from tokenmill.generate.sampling import Sampling
from tokenmill.tokenize.vision import Codes


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A clip to be made longer: its codes (t, h, w) at `fps`, what it shows, and the seed of what comes."""

    codes: Codes
    fps: float
    prompt: str = ""
    negative: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One window: what was drawn (its `begun` frames are the context), and the document's ids from BOS to EOS."""

    drawing: Drawing
    ids: NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extended:
    """The codes (total, h, w), of which the first are those given, and the windows that the rest was drawn in."""

    codes: Codes
    windows: tuple[Window, ...]


def extend_clip(
    model: ExportedModel,
    clips: Sequence[Clip],
    sampling: Sampling,
    *,
    context: int,
    new: int,
    total: int,
    frames_per_code: int,
    batch_size: int = 8,
    num_codes: int | None = None,
) -> list[Extended]:
    """Draw on until each clip has `total` latent frames: `context` of them are read, the next `new` are drawn.

    `frames_per_code` are the frames that one latent frame stands for (a vision tokenizer's `temporal_factor`): with
    `fps` they give the seconds that a window's meta tells. A clip depends on itself alone, not on those beside it.

    Raises:
        RecipeError: numbers below 1, or windows that the model's context does not hold.
        SampleError: `clip_too_short` for one that lacks the context, `clip_too_long` for one that has `total` frames
            and more, `out_of_range` for codes that the vocabulary or tokenizer does not have.
    """
    if min(context, new, frames_per_code) < 1:
        raise RecipeError(f"context {context}, new {new} and frames_per_code {frames_per_code} must be 1 and more")
    for number, clip in enumerate(clips):
        _check_length(number, len(clip.codes), context, total)
    if all(clip.prompt == clip.negative for clip in clips):  # guidance away from itself is twice the work for nothing
        sampling = replace(sampling, guidance=1.0)
    done = [Extended(codes=clip.codes, windows=()) for clip in clips]
    while waiting := [number for number, one in enumerate(done) if len(one.codes) < total]:
        drawings = [_window(clips[n], done[n], min(context + new, total), new, total, frames_per_code) for n in waiting]
        documents = draw_documents(model, drawings, sampling, batch_size=batch_size, num_codes=num_codes)
        for number, drawing, ids in zip(waiting, drawings, documents, strict=True):
            (shown,) = parse_pictures(ids, model.vocabulary)
            codes = np.concatenate([done[number].codes, shown.codes_thw[drawing.num_begun :]])
            window = Window(drawing=drawing, ids=ids)
            done[number] = Extended(codes=codes, windows=(*done[number].windows, window))
    return done


def _check_length(number: int, length: int, context: int, total: int) -> None:
    if length < context:
        told = f"clip {number} has {length} latent frames; {context} of them are wanted as context"
        raise SampleError("clip_too_short", told)
    if length >= total:
        raise SampleError("clip_too_long", f"clip {number} has {length} latent frames already; {total} are wanted")


def _window(clip: Clip, so_far: Extended, length: int, new: int, total: int, frames_per_code: int) -> Drawing:
    """Give the next window of `length` latent frames: the last frames there are, and at most `new` to be drawn."""
    num_begun = length - min(new, total - len(so_far.codes))
    _, height, width = clip.codes.shape
    return Drawing(
        prompt=clip.prompt,
        height=height,
        width=width,
        frames=length,
        fps=clip.fps,
        seconds=round(length * frames_per_code / clip.fps, 3),
        negative=clip.negative,
        seed=_window_seed(clip.seed, len(so_far.windows)),
        begun=so_far.codes[-num_begun:],
    )


def _window_seed(seed: int, number: int) -> int:
    """Give each window a seed of its own, the first one the clip's: equal ones would draw alike."""
    if number == 0:
        return seed
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> np.uint64(1))
