"""What the toy world consists of: its words, its sizes, and the data types that writers and judges share.

A picture is a `Scene` of `tokenmill.demo.world` (centres and radii as fractions of the side, y downwards); a clip is a
`Motion`, in pixels and frames. Both are drawn from a seed alone, so whoever has the seed has the truth. The trade-off:
3 shapes in 5 colours on 3 backgrounds are 15 looks, few enough for 3 million tokens to teach them, and still 180
ordered pairs that differ in both.

Legend: T frames, N objects, H height, W width, C channels (RGB).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tokenmill.demo.world import RGB

SIZE = 32  # pixels, both sides
NOISE = 3.0  # standard deviation of the noise over a picture, of 255
PLACES = (8, 16, 24)  # pixels, both ways, where four codes of 8 x 8 pixels meet: a thing there fills these four alone
FPS = 8
FRAMES = 32  # of a clip as it is written: 8 latent frames of 4

SHAPES = ("circle", "square", "triangle")
COLOURS: Mapping[str, RGB] = {
    "red": (220, 30, 34),
    "yellow": (240, 220, 30),
    "green": (30, 160, 60),
    "blue": (30, 70, 220),
    "purple": (160, 40, 190),
}
BACKGROUNDS: Mapping[str, RGB] = {"white": (235, 235, 235), "gray": (130, 130, 130), "black": (24, 24, 24)}
BAR: RGB = (120, 75, 40)  # brown: what things pass behind; neither a colour of things nor a background
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE: Mapping[str, str] = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
WAYS: Mapping[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
NUMBERS = ("zero", "one", "two", "three", "four")

PromptKind = Literal["single_object", "two_objects", "counting", "colours", "position", "colour_attribution"]
QuestionKind = Literal["yes_no", "counting", "colour", "relation", "motion"]
MotionKind = Literal["straight", "bouncing", "occluded"]
PROMPT_KINDS: tuple[PromptKind, ...] = get_args(PromptKind)
QUESTION_KINDS: tuple[QuestionKind, ...] = get_args(QuestionKind)
MOTION_KINDS: tuple[MotionKind, ...] = get_args(MotionKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Things that a prompt asks for: `count` of this shape, in this colour unless that is left open (None)."""

    shape: str
    colour: str | None = None
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What is asked of the model, in words and for a judge.

    A picture is right that shows exactly what is `wanted` and nothing else, the first in `relation` to the second, on
    the background that is named. `unseen`: it needs a combination that no training scene has.
    """

    kind: PromptKind
    text: str
    wanted: tuple[Wanted, ...]
    relation: str | None = None
    background: str | None = None
    unseen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question about a picture or clip, with its answer of one or two words.

    `form` tells questions of a kind apart that have other answers or are harder: of yes_no "random", "popular" and
    "adversarial" (how the absent look was chosen; as many present ones carry the word), "shape" and "colour" (of any
    look), of relation "is" (yes, no) and "where" (left, right, above, below), of motion "way" (left, right, up, down)
    and "bounce" (yes, no), of counting "number", of colour "name".
    `unseen`: question or answer names a combination that never occurs in training.
    """

    kind: QuestionKind
    form: str
    text: str
    answer: str
    unseen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mover:
    """A thing in a clip: centre at frame 0 and radius in pixels, velocity in pixels per frame (0, 0: stays still)."""

    shape: str
    colour: str
    rgb: RGB
    radius: float
    x: float
    y: float
    vx: float = 0.0
    vy: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What things pass behind: a rectangle from edge to edge, in pixels, drawn over them."""

    left: float
    top: float
    right: float
    bottom: float
    rgb: RGB


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """A clip described exactly; `benchmarks.toyworld.motion` says where its things are at any time, and draws it.

    The first of `objects` moves, a second one stays still. `way` is left, right, up or down, or None (slanting).
    """

    seed: int
    kind: MotionKind
    background: str
    corners: tuple[RGB, RGB, RGB, RGB]
    objects: tuple[Mover, ...]
    way: str | None
    bar: Bar | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracks:
    """Where the things of a clip are, at frames `first`, `first` + 1, …

    `centres` (T, N, 2) float64: x, y in pixels, the upper left pixel's corner is 0, 0, so its middle is 0.5, 0.5.
    `visible` (T, N) float64: the share of the thing's box that lies in the picture and not behind the bar, 0 to 1.
    """

    first: float
    centres: NDArray[np.float64]
    visible: NDArray[np.float64]


# Where what is:
#   scenes.py     scene(seed, unseen=False) -> Scene, draw(scene) -> HWC uint8
#   motion.py     motion(seed, unseen=False, kind=None) -> Motion, tracks(motion, num_frames, first=0) -> Tracks,
#                 position(motion, t) -> (N, 2), draw_motion(motion, num_frames, first=0) -> THWC uint8
#   splits.py     combinations(scene or motion), is_unseen(scene or motion)
#   captions.py   captions(scene), clip_captions(motion) -> tuple[str, ...]
#   questions.py  questions(scene, count=2), clip_questions(motion, count=2) -> tuple[Question, ...]
#   exams.py      exam(kind, n, unseen=False) -> ((Scene, Question), …), clip_exam(kind, n, unseen=False) ->
#                 ((Motion, Question), …): from held-out seeds, each answer of a form equally often
#   prompts.py    prompts(kind, n, unseen=False) -> (Prompt, …)
#   writing.py    write_pictures, write_questions, write_clips; with shuffled=False, clips with spliced=False too
