"""Clips made longer: from given frames or codes to codes of the model's own grid, and to a drawing of the whole.

A clip is continued where it ends: frames that fill no whole window of the tokenizer are left out at its beginning. What
is written is the given part as the codes have it, then what was drawn, with the frame where the one becomes the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError
from tokenmill.generate.canvas import Canvas, check_room
from tokenmill.generate.drawing import Drawing
from tokenmill.generate.drawing_requests import about_drawing
from tokenmill.generate.drawn_files import Drawn
from tokenmill.generate.drawn_folder import DrawnFolder, identity_of
from tokenmill.generate.extending import Clip, extend_clip
from tokenmill.generate.known_words import check_words
from tokenmill.generate.opened_model import OpenedModel
from tokenmill.generate.pictures import decode_ids
from tokenmill.generate.prompts import drawing_prompt
from tokenmill.generate.sampling import Sampling
from tokenmill.manifests.identity import sha256_hex
from tokenmill.tokenize.documents import Segment, TextSegment, VisionSegment, assemble
from tokenmill.tokenize.preprocess import resize, target_size
from tokenmill.tokenize.vision import Codes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GivenClip:
    """The codes (t, h, w) of a clip, its rate, and how it is called; `notes` say what was done to it."""

    name: str
    codes: Codes
    fps: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far clips are extended: each of context, new and total in seconds or in frames.

    Attributes:
        context_seconds, context_frames: what is read of what is there; 2 s where nothing is said (EMU3.md §6).
        new_seconds, new_frames: drawn at a time; as many as the context where nothing is said.
        total_seconds: of the whole; absent: what is given and once `new`.
    """

    context_seconds: float | None = None
    context_frames: int | None = None
    new_seconds: float | None = None
    new_frames: int | None = None
    total_seconds: float | None = None

    def in_codes(self, given: GivenClip, window: int) -> tuple[int, int, int]:
        """Give context, new and total of a clip in latent frames of `window` frames each.

        Raises RecipeError for frames that are no multiple, a clip that is shorter than the context, or long already.
        """
        context = _steps("context", self.context_seconds, self.context_frames, given.fps, window)
        context = context or max(1, round(2 * given.fps / window))
        new = _steps("new", self.new_seconds, self.new_frames, given.fps, window) or context
        there = len(given.codes)
        if there < context:
            told = f"{there * window} frames, {there * window / given.fps:.2f} s at {given.fps:g} fps"
            raise RecipeError(f"{given.name}: {told}; the context takes {context * window}: give a shorter one")
        total = there + new
        if self.total_seconds is not None:
            total = _steps("total", self.total_seconds, None, given.fps, window) or 0
        if total <= there:
            raise RecipeError(f"{given.name}: is {there * window / given.fps:.2f} s long; ask for more in all")
        return context, new, total


def clip_of_frames(
    model: OpenedModel, name: str, frames_THWC: NDArray[np.uint8], fps: float, notes: Sequence[str] = ()
) -> GivenClip:
    """Encode a clip at the size the model was trained on; raises RecipeError where it is less than one window."""
    vision, area = model.vision, model.area("video")
    window = vision.temporal_factor
    rest = len(frames_THWC) % window
    if len(frames_THWC) < window:
        raise RecipeError(f"{name}: {len(frames_THWC)} frames; the model's tokenizer takes {window} and more")
    size = target_size(
        *frames_THWC.shape[1:3],
        min_area=area.min_area,
        max_area=area.max_area,
        max_aspect=area.max_aspect,
        multiple=vision.spatial_factor,
    )
    frames = np.stack([resize(frame, size) for frame in frames_THWC[rest:]])
    told = [*notes, *([f"the first {rest} frames are left out: a code is {window} frames"] if rest else [])]
    return GivenClip(name=name, codes=vision.encode_video(frames[None])[0], fps=fps, notes=tuple(told))


def extend_clips(
    model: OpenedModel,
    given: Sequence[GivenClip],
    reach: Reach,
    sampling: Sampling,
    on_drawn: Callable[[int, Drawn], None],
    *,
    prompt: str = "",
    negative: str = "",
    seed: int = 0,
    batch_size: int = 8,
    folder: DrawnFolder | None = None,
) -> int:
    """Make clips longer, those of equal reach and grid together; returns how many were there already.

    Raises:
        RecipeError: as `Reach.in_codes`; a window that the model's context does not hold; an unknown script.
    """
    clips = [_Prepared.of(model, one, reach, sampling, prompt, negative, seed) for one in given]
    rows = {} if folder is None else folder.rows
    groups: dict[tuple[int, ...], list[int]] = {}
    found = 0
    for index, clip in enumerate(clips):
        row = rows.get(identity_of(clip.about))
        if row is not None and folder is not None:
            found += 1
            on_drawn(index, clip.drawn(model, folder.ids(row["file"])))
        else:
            groups.setdefault((*clip.steps, *clip.given.codes.shape[1:]), []).append(index)
    for (context, new, total, *_), indexes in groups.items():
        for start in range(0, len(indexes), batch_size):
            batch = indexes[start : start + batch_size]
            extended = extend_clip(
                model.model,
                [clips[index].clip for index in batch],
                sampling,
                context=context,
                new=new,
                total=total,
                frames_per_code=model.vision.temporal_factor,
                batch_size=batch_size,
                num_codes=model.vision.codebook_size,
            )
            drawn = [
                clips[index].drawn(model, clips[index].document(model, one.codes))
                for index, one in zip(batch, extended, strict=True)
            ]
            if folder is not None:
                folder.add(drawn)
            for index, one in zip(batch, drawn, strict=True):
                on_drawn(index, one)
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Prepared:
    """A clip with how far it goes, and what its file will say."""

    given: GivenClip
    clip: Clip
    steps: tuple[int, int, int]
    about: dict[str, Any]

    @staticmethod
    def of(
        model: OpenedModel, given: GivenClip, reach: Reach, sampling: Sampling, prompt: str, negative: str, seed: int
    ) -> _Prepared:
        window = model.vision.temporal_factor
        context, new, total = steps = reach.in_codes(given, window)
        vocabulary = model.model.vocabulary
        notes = [note for text in (prompt, negative) if (note := check_words(vocabulary, text, "the prompt"))]
        _, height, width = given.codes.shape
        clip = Clip(codes=given.codes, fps=given.fps, prompt=prompt, negative=negative, seed=seed)
        whole = _drawing(clip, total, window)
        length = min(context + new, total)
        opening = max(
            len(drawing_prompt(vocabulary, text, _segment(clip, length, window))) for text in (prompt, negative)
        )
        check_room(Canvas(height=height, width=width, frames=length), opening, model.context)
        about = about_drawing(whole, sampling, model.identity(), [*given.notes, *notes]) | {
            "extends": {
                "name": given.name,
                "frames": len(given.codes) * window,
                "seconds": round(len(given.codes) * window / given.fps, 3),
                "codes_sha256": sha256_hex(given.codes.astype("<u4").tobytes()),
                "context_frames": context * window,
                "new_frames": new * window,
            }
        }
        return _Prepared(given=given, clip=clip, steps=steps, about=about)

    def document(self, model: OpenedModel, codes: Codes) -> NDArray[np.int32]:
        """Give the ids of the whole clip as one document, which may be longer than the model's context."""
        vocabulary = model.model.vocabulary
        text = np.array(vocabulary.text.encode(self.clip.prompt), np.uint32)
        segments: list[Segment] = [TextSegment(0, len(text), "caption")] if len(text) else []
        segments.append(_segment(self.clip, len(codes), model.vision.temporal_factor))
        template = "generation" if len(text) else "unconditional"
        return assemble(segments, text, codes.reshape(-1), template, vocabulary).ids

    def drawn(self, model: OpenedModel, ids: NDArray[np.int32]) -> Drawn:
        frames = np.stack(decode_ids(ids, model.model.vocabulary, model.vision))
        return Drawn(about=self.about, ids=ids, frames=frames, fps=self.clip.fps)


def _drawing(clip: Clip, total: int, window: int) -> Drawing:
    _, height, width = clip.codes.shape
    return Drawing(
        prompt=clip.prompt,
        height=height,
        width=width,
        frames=total,
        fps=clip.fps,
        seconds=round(total * window / clip.fps, 3),
        negative=clip.negative,
        seed=clip.seed,
    )


def _segment(clip: Clip, length: int, window: int) -> VisionSegment:
    _, height, width = clip.codes.shape
    return VisionSegment(length, height, width, 0, clip.fps, round(length * window / clip.fps, 3))


def _steps(what: str, seconds: float | None, frames: int | None, fps: float, window: int) -> int | None:
    """Give latent frames of what is said in frames or seconds; None where nothing is."""
    if frames is not None and seconds is not None:
        raise RecipeError(f"{what}: frames or seconds, not both")
    if frames is not None:
        if frames < 1 or frames % window:
            raise RecipeError(f"{what}: {frames} frames are no multiple of {window} frames a code")
        return frames // window
    if seconds is None:
        return None
    if not 0 < seconds < float("inf"):
        raise RecipeError(f"{what}: {seconds:g} seconds; has to be over 0")
    return max(1, round(seconds * fps / window))
