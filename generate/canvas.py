"""How large a drawing is: from pixels, an aspect or seconds to a grid of codes that the model can hold.

An aspect becomes a size by the same rule that training's pictures were resized by (`target_size`), so what is drawn has
a grid that the model has seen. What does not fit is said before anything is drawn, with what would fit: 720x720 pixels
take minutes, and the context is known at once.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from tokenmill.errors import RecipeError, SampleError
from tokenmill.generate.seeing import Area
from tokenmill.tokenize.preprocess import target_size

_PAIR = re.compile(r"(\d{1,6})\s*[x×*]\s*(\d{1,6})")
_ASPECT = re.compile(r"(\d+(?:\.\d+)?)\s*[:/]\s*(\d+(?:\.\d+)?)")
_LARGE_PX = 1 << 14
_USUAL_FPS = 24.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """A grid in codes; `frames` are latent frames, `fps` and `seconds` those of a clip."""

    height: int
    width: int
    frames: int = 1
    fps: float | None = None
    seconds: float | None = None

    @property
    def num_ids(self) -> int:
        """Ids from the first code to EOS (EMU3.md §4)."""
        return self.frames * (self.height * (self.width + 1) + 1) + 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What somebody asks for: a size in pixels, or an aspect (and area); frames or seconds make it a clip.

    Attributes:
        size: height and width in pixels.
        aspect: width over height; with neither it is 1.
        area: pixels; absent: the largest that the model was trained on.
        frames, seconds: one of them, of a clip.
        fps: of a clip; 24 where nothing is said.
    """

    size: tuple[int, int] | None = None
    aspect: float | None = None
    area: int | None = None
    frames: int | None = None
    seconds: float | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        if self.size is not None and (self.aspect is not None or self.area is not None):
            raise RecipeError("size: says it all; leave aspect and area out")
        if self.frames is not None and self.seconds is not None:
            raise RecipeError("frames and seconds: one of them")
        if self.fps is not None and not self.is_clip:
            raise RecipeError("fps: is of a clip; give seconds or frames, too")

    @property
    def is_clip(self) -> bool:
        return self.frames is not None or self.seconds is not None


def canvas_of(shape: Shape, trained: Area, spatial: int, temporal: int) -> Canvas:
    """Turn what is asked for into a grid of codes, of `spatial` pixels a side and `temporal` frames each.

    Raises RecipeError for sides or frames that are no multiple, and for an aspect that the model never saw.
    """
    if shape.size is not None:
        rows, columns = sized(*shape.size, spatial)
    else:
        rows, columns = shaped(shape.aspect or 1.0, trained, spatial, shape.area)
    if not shape.is_clip:
        return Canvas(height=rows, width=columns)
    fps = _USUAL_FPS if shape.fps is None else shape.fps
    steps = latent_frames(temporal, frames=shape.frames, seconds=shape.seconds, fps=fps)
    return Canvas(height=rows, width=columns, frames=steps, fps=fps, seconds=round(steps * temporal / fps, 3))


def parse_size(text: str) -> tuple[int, int]:
    """Read `HxW` in pixels; raises RecipeError."""
    found = _PAIR.fullmatch(text.strip())
    if found is None or not int(found[1]) * int(found[2]):
        raise RecipeError(f"size {text!r}: is HEIGHTxWIDTH in pixels, such as 512x768")
    return int(found[1]), int(found[2])


def parse_aspect(text: str) -> float:
    """Read `W:H` as width over height; raises RecipeError."""
    found = _ASPECT.fullmatch(text.strip())
    if found is None or not float(found[1]) * float(found[2]):
        raise RecipeError(f"aspect {text!r}: is WIDTH:HEIGHT, such as 16:9")
    return float(found[1]) / float(found[2])


def parse_area(text: str) -> int:
    """Read a number of pixels, also as a product `512x512`; raises RecipeError."""
    if text.strip().isdecimal() and int(text):
        return int(text)
    try:
        height, width = parse_size(text)
    except RecipeError as error:
        raise RecipeError(f"area {text!r}: is a number of pixels, such as 262144 or 512x512") from error
    return height * width


def sized(height: int, width: int, factor: int) -> tuple[int, int]:
    """Turn pixels into rows and columns of codes; raises RecipeError for sides that are no multiple of `factor`."""
    for pixels in (height, width):
        if pixels % factor or not pixels:
            near = " or ".join(
                str(one) for one in sorted({pixels // factor * factor, -(-pixels // factor) * factor}) if one
            )
            raise RecipeError(f"size {height}x{width}: {pixels} is no multiple of {factor} pixels a code; near: {near}")
    return height // factor, width // factor


def shaped(aspect: float, trained: Area, factor: int, area: int | None = None) -> tuple[int, int]:
    """Give rows and columns of codes of an aspect (width over height), as large as `area` or the trained area allows.

    Raises RecipeError for an aspect that the model never saw, or an area that holds not one code.
    """
    most = area or trained.max_area
    ratio = Fraction(aspect).limit_denominator(_LARGE_PX)
    height, width = ratio.denominator * _LARGE_PX, ratio.numerator * _LARGE_PX
    whole = most // factor**2 * factor**2 + 1  # one more, or 3:1 of 768 pixels would be rounded to 16x40
    try:
        rows, columns = target_size(
            height, width, min_area=1, max_area=whole, max_aspect=trained.max_aspect, multiple=factor
        )
    except SampleError as error:
        raise RecipeError(f"aspect {aspect:.3g}: {error.message}, which is what the model was trained on") from error
    if rows * columns > most:
        raise RecipeError(f"area {most}: smaller than the pixels of one code a side, {factor}x{factor}")
    return rows // factor, columns // factor


def latent_frames(window: int, *, frames: int | None, seconds: float | None, fps: float) -> int:
    """Give the latent frames of a clip: of exactly so many frames, or of so many seconds to the nearest.

    Raises RecipeError for frames that are no multiple of the tokenizer's `window`.
    """
    if not 0 < fps < math.inf:
        raise RecipeError(f"fps {fps:g}: has to be over 0")
    if frames is not None:
        if frames < 1 or frames % window:
            raise RecipeError(f"frames {frames}: is no multiple of {window} frames a code")
        return frames // window
    if seconds is None or not 0 < seconds < math.inf:
        raise RecipeError(f"seconds {seconds}: has to be over 0")
    return max(1, round(seconds * fps / window))


def check_room(canvas: Canvas, prompt_ids: int, context: int) -> None:
    """Raise RecipeError when a prompt and a drawing do not fit into the model's context, saying what would."""
    needed = prompt_ids + canvas.num_ids
    if needed <= context:
        return
    room = context - prompt_ids - 2
    grid = f"{canvas.height}x{canvas.width} codes"
    a_frame = canvas.height * (canvas.width + 1) + 1
    if canvas.frames > 1:
        what = f"{canvas.frames} latent frames of {grid}"
        fits = f"{room // a_frame} of them fit" if room >= a_frame else "not one of them fits"
    else:
        side = max(0, math.isqrt(4 * max(0, room) - 3) - 1) // 2 if room > 0 else 0
        what, fits = grid, f"about {side}x{side} fit" if side else "no picture fits"
    told = f"{prompt_ids} ids of the prompt and {canvas.num_ids:,} of {what} are {needed:,}"
    raise RecipeError(f"{told}; the model's context holds {context:,}: {fits}")
