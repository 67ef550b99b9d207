"""A trained model for Python and for the commands: open it once, then draw, extend, ask and chat.

    from tokenmill.studio import Sampling, Shape, open_studio

    studio = open_studio("run/checkpoints/main/export", device="cpu")
    for drawn in studio.draw(["a red circle"], Shape(aspect=16 / 9), samples=4, seed=1):
        drawn.save(f"circle-{drawn.about['seed']}.png")
    longer = studio.extend("clip.mp4", Reach(total_seconds=8))
    print(studio.ask("photo.png"), studio.ask("photo.png", "How many people are there?"))
    chat = studio.chat()
    print(chat.say("What is this?", "photo.png"))

Here paths become pixels and codes, by the decoders of the stages; all that follows is in `generate/`, which takes
arrays. Opening costs what reading the weights costs (a second for 5 M parameters), the vision tokenizer at first use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError, RunError, SampleError, TokenmillError
from tokenmill.generate.canvas import Canvas, Shape, canvas_of
from tokenmill.generate.clip_to_extend import GivenClip, Reach, clip_of_frames, extend_clips
from tokenmill.generate.conversation import Conversation
from tokenmill.generate.drawing_requests import Asked, drawing_requests
from tokenmill.generate.drawing_session import Share, draw_requests
from tokenmill.generate.drawn_files import Drawn
from tokenmill.generate.drawn_folder import DrawnFolder, identity_of
from tokenmill.generate.opened_model import OpenedModel, open_model
from tokenmill.generate.pictures import parse_pictures
from tokenmill.generate.prompts import Shown
from tokenmill.generate.sampling import Sampling
from tokenmill.generate.seeing import codes_of, look_at
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.given_media import GivenMedia, Wanted, read_media
from tokenmill.stored_clips import archived_clip, drawn_clip

__all__ = ["Chat", "Drawn", "Reach", "Sampling", "Shape", "Studio", "open_studio"]

Pixels = NDArray[np.uint8]
Media: TypeAlias = "str | Path | Pixels | GivenMedia"
DRAWING = Sampling()
_FRAMES_SEEN = 8  # of a clip that is asked about


@dataclass(frozen=True, kw_only=True)
class Studio:
    """An opened model, and how it is run.

    Attributes:
        batch_size: drawings or clips at a time; changes none of them.
        storage: options of the stores that paths lead to.
    """

    model: OpenedModel
    batch_size: int = 8
    storage: Mapping[str, Any] = field(default_factory=dict)

    def draw(
        self,
        prompts: str | Sequence[str | Asked],
        shape: Shape | None = None,
        *,
        negative: str = "",
        samples: int = 1,
        seed: int = 0,
        sampling: Sampling = DRAWING,
        out: str | Path | None = None,
    ) -> list[Drawn]:
        """Draw pictures, or clips where `shape` has seconds or frames: the samples of a prompt behind each other.

        Of every prompt the seeds are `seed`, `seed` + 1, … With `out` the files, ids and index go to that folder, and
        what lies there already is not drawn again.

        Raises:
            RecipeError: an empty prompt, sizes that are no multiple or that the context can't hold, an unknown script.
        """
        texts: Sequence[str | Asked] = [prompts] if isinstance(prompts, str) else prompts
        canvas = self.canvas(shape or Shape())
        asked = [
            Asked(prompt=one, canvas=canvas, negative=negative, seed=seed, samples=samples, where=f"prompt {number}")
            if isinstance(one, str)
            else one
            for number, one in enumerate(texts, 1)
        ]
        found: dict[int, Drawn] = {}
        self.draw_asked(asked, sampling, found.__setitem__, folder=None if out is None else self.folder(out))
        return [found[index] for index in range(len(found))]

    def draw_asked(
        self,
        asked: Sequence[Asked],
        sampling: Sampling,
        on_drawn: Callable[[int, Drawn], None],
        *,
        folder: DrawnFolder | None = None,
        progress: Callable[[Share], None] | None = None,
    ) -> Share:
        """Draw prompts of different sizes, telling each drawing as it is there."""
        requests = drawing_requests(self.model, asked, sampling)
        return draw_requests(
            self.model, requests, sampling, on_drawn, batch_size=self.batch_size, folder=folder, progress=progress
        )

    def extend(
        self,
        clip: Media | GivenClip,
        reach: Reach | None = None,
        *,
        prompt: str = "",
        negative: str = "",
        seed: int = 0,
        fps: float | None = None,
        sampling: Sampling = DRAWING,
        out: str | Path | None = None,
    ) -> Drawn:
        """Make a clip longer; `about["extends"]` says at which frame and second the given part ends.

        `fps` is the rate of frames given as an array or folder, and of others one to take them at.
        """
        given = clip if isinstance(clip, GivenClip) else self.given_clip(clip, fps=fps)
        found: list[Drawn] = []
        extend_clips(
            self.model, [given], reach or Reach(), sampling, lambda _, drawn: found.append(drawn),
            prompt=prompt, negative=negative, seed=seed, folder=None if out is None else self.folder(out),
        )  # fmt: skip
        return found[0]

    def ask(self, media: Media | None = None, question: str = "", **chat: Any) -> str:
        """Say what is on a picture or clip, or answer a question about it; `chat` as `Conversation` takes it."""
        conversation = self.conversation(**chat)
        shown = [] if media is None else [self.shown(media)]
        if question:
            conversation.waiting += shown
            return conversation.say(question)
        if not shown:
            raise RecipeError("nothing to answer: give a picture or a clip, or a question")
        return conversation.caption(shown[0])

    def chat(self, **settings: Any) -> Chat:
        """Begin a chat; settings as `Conversation` takes them: system, max_new, sampling, seed."""
        return Chat(studio=self, conversation=self.conversation(**settings))

    def conversation(self, **settings: Any) -> Conversation:
        return Conversation(model=self.model, **settings)

    def canvas(self, shape: Shape) -> Canvas:
        """Return the grid of a shape on this model; raises RecipeError where it has none."""
        vision = self.model.vision
        trained = self.model.area("video" if shape.is_clip else "image")
        return canvas_of(shape, trained, vision.spatial_factor, vision.temporal_factor)

    def folder(self, place: str | Path) -> DrawnFolder:
        """Open a folder to draw into."""
        return DrawnFolder(open_store(str(place), self.storage))

    def shown(self, media: Media, frames: int = _FRAMES_SEEN) -> Shown:
        """Make a picture or clip into codes at the size that the model was trained on.

        Raises RunError for what cannot be decoded or shown, naming it.
        """
        given = self._media(media, Wanted(frames=frames))
        area = self.model.area("image" if len(given.frames) == 1 else "video")
        vision = self.model.vision
        try:
            seen = look_at(given.frames, given.seconds, area, vision, given.fps)
        except SampleError as error:
            raise RunError(f"{given.name}: {error}") from error
        return Shown(codes=codes_of([seen], vision)[0], fps=seen.fps, seconds=seen.seconds, name=given.name)

    def given_media(self, place: str, *, frames: int = _FRAMES_SEEN, fps: float | None = None) -> GivenMedia:
        """Read a picture, or some frames of a clip; raises as `read_media`."""
        return read_media(place, Wanted(frames=frames, fps=fps), self.storage)

    def rows(self, asked: Sequence[Asked], sampling: Sampling, folder: DrawnFolder) -> list[dict[str, Any]]:
        """Return the index rows of what was drawn for prompts."""
        requests = drawing_requests(self.model, asked, sampling)
        return [folder.rows[identity_of(request.about)] for request in requests]

    def file_of(self, drawn: Drawn, out: str | Path) -> str:
        """Return where a drawing's file is in a folder."""
        return f"{out}/{self.folder(out).rows[identity_of(drawn.about)]['file']}"

    def given_clip(self, media: Media, *, fps: float | None = None, key: str | None = None) -> GivenClip:
        """Read a clip to be made longer: from its tokens where they are stored, else its frames encoded.

        Tokens are those of an archive's sample `key`, or of a clip that was drawn into its folder by this model.
        """
        if isinstance(media, str | Path):
            if key is not None:
                return archived_clip(str(media), key, self.model, self.storage)
            stored = drawn_clip(str(media), self.model, self.storage) if fps is None else None
            if stored is not None:
                return stored
        given = self._media(media, Wanted(fps=fps))
        rate = fps or given.fps
        if rate is None:
            raise RecipeError(f"{given.name}: a clip given as frames needs fps")
        try:
            return clip_of_frames(self.model, given.name, given.frames, rate)
        except SampleError as error:
            raise RunError(f"{given.name}: {error}") from error

    def _media(self, media: Media, wanted: Wanted) -> GivenMedia:
        if isinstance(media, GivenMedia):
            return media
        if isinstance(media, np.ndarray):
            frames = media if media.ndim == 4 else media[None]
            seconds = () if wanted.fps is None else tuple(number / wanted.fps for number in range(len(frames)))
            return GivenMedia(name="frames", frames=frames, seconds=seconds, fps=wanted.fps)
        return read_media(str(media), wanted, self.storage)


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A conversation that takes pictures by path, and draws."""

    studio: Studio
    conversation: Conversation

    def say(self, text: str, *media: Media, on_text: Callable[[str], None] | None = None) -> str:
        """Say something, showing pictures and clips with it; returns the answer."""
        shown = [self.studio.shown(one) for one in media]
        waiting = self.conversation.waiting
        self.conversation.waiting = [*waiting, *shown]
        try:
            return self.conversation.say(text, on_text)
        except TokenmillError:
            self.conversation.waiting = waiting
            raise

    def show(self, media: Media) -> Shown:
        """Show a picture or clip with the next question."""
        shown = self.studio.shown(media)
        self.conversation.show(shown)
        return shown

    def draw(self, prompt: str, shape: Shape | None = None, **how: Any) -> Drawn:
        """Draw a picture or clip, which is then part of the chat; `how` as `Studio.draw` takes it."""
        drawn = self.studio.draw([prompt], shape, **how)[0]
        (picture,) = parse_pictures(drawn.ids, self.studio.model.model.vocabulary)
        self.conversation.drew(
            prompt, Shown(codes=picture.codes_thw, fps=picture.fps, seconds=picture.seconds, name="drawn")
        )
        return drawn


def open_studio(
    place: str | Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    batch_size: int = 8,
    storage: Mapping[str, Any] | None = None,
) -> Studio:
    """Open the model at a path or URL: an export, or the folder of its run.

    Raises:
        RecipeError: nothing is there, it is no model, its vocabulary does not fit, or the device is not there.
    """
    if batch_size < 1:
        raise RecipeError(f"batch_size {batch_size}: has to be at least 1")
    model = open_model(str(place), storage=storage, device=device, dtype=dtype)
    return Studio(model=model, batch_size=batch_size, storage=dict(storage or {}))
