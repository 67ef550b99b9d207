"""What lmms-eval puts into a request, as turns: messages of its chat models, texts and visuals of its simple ones.

Read of version 0.7.3: a message's content is a list of `{"type": "text", "text": …}` and `{"type": "image" | "video",
"url": …}`, where the url is a PIL picture, a path, an array of frames, or a mapping that holds one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tokenmill.errors import SampleError
from tokenmill.generate.clip_frames import clip_frames
from tokenmill.generate.conversing import Speaker, Turn
from tokenmill.generate.seeing import Area, Seen, look_at
from tokenmill.tokenize.vision import VisionTokenizer

_PICTURES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
_FRAME_S = 1.0  # frames that come without times are said to be a second apart


@dataclass(frozen=True, kw_only=True)
class Eyes:
    """Makes turns of a request's content: pictures and frames at the model's sizes, `max_frames` of a clip.

    `fps` is the rate clips are said to have; None: at which their frames were taken.
    """

    vision: VisionTokenizer
    picture_area: Area
    clip_area: Area
    fps: float | None
    max_frames: int

    def turns(self, messages: Sequence[Mapping[str, Any]], system: str = "") -> list[Turn]:
        """Read messages; `system` is what is said first where no message of the system's is there.

        Raises:
            SampleError: something shown cannot be opened, or is a sound.
        """
        turns = [Turn(speaker=cast(Speaker, one["role"]), parts=tuple(self._parts(one["content"]))) for one in messages]
        if system and not any(turn.speaker == "system" for turn in turns):
            turns.insert(0, Turn(speaker="system", parts=(system,)))
        return turns

    def question(self, text: str, visuals: Sequence[Any] | None, system: str = "") -> list[Turn]:
        """Read the context and the visuals of a simple request: what is shown stands before the words."""
        shown = [self._shown(_kind(one), one) for one in visuals or ()]
        return [*self.turns([], system), Turn(speaker="user", parts=(*shown, text))]

    def _parts(self, content: str | Sequence[Mapping[str, Any]]) -> Iterable[str | Seen]:
        if isinstance(content, str):
            return [content]
        return [
            str(part["text"]) if part["type"] == "text" else self._shown(part["type"], part.get("url"), part)
            for part in content
        ]

    def _shown(self, kind: str, value: Any, times: Mapping[str, Any] | None = None) -> Seen:
        if isinstance(value, Mapping):
            times, value = value, value.get("url") or value.get("path") or value.get("video") or value.get("image")
        if kind == "image":
            return look_at(_picture(value)[None], (), self.picture_area, self.vision)
        if kind == "video":
            frames, seconds = self._frames(value, times or {})
            return look_at(frames, seconds, self.clip_area, self.vision, self.fps)
        raise SampleError("not_seen", f"the model takes texts, pictures and clips, not {kind}")

    def _frames(self, value: Any, times: Mapping[str, Any]) -> tuple[NDArray[np.uint8], tuple[float, ...]]:
        if isinstance(value, str | Path):
            start, end = (times.get(f"video_{name}", times.get(f"{name}_time")) for name in ("start", "end"))
            return clip_frames(value, self.max_frames, float(start or 0), None if end is None else float(end))
        if not len(value):
            raise SampleError("no_picture", "a clip without frames")
        taken = min(self.max_frames, len(value))
        numbers = [len(value) * (2 * part + 1) // (2 * taken) for part in range(taken)]
        return np.stack([_picture(value[number]) for number in numbers]), tuple(_FRAME_S * one for one in numbers)


def _kind(value: Any) -> str:
    """Tell what a visual of a simple request is; the harness itself goes by the suffix of a path."""
    if isinstance(value, str | Path):
        return "image" if Path(value).suffix.lower() in _PICTURES else "video"
    if isinstance(value, Mapping):
        return str(value.get("type") or ("audio" if "sampling_rate" in value else "video"))
    return "video" if isinstance(value, list | tuple) else "image"


def _picture(value: Any) -> NDArray[np.uint8]:
    """Give a picture's pixels (H, W, 3)."""
    try:
        if isinstance(value, str | Path):
            with Image.open(value) as opened:
                return np.asarray(opened.convert("RGB"))
        if isinstance(value, np.ndarray):
            value = Image.fromarray(value)
        return np.asarray(value.convert("RGB"))
    except (OSError, UnidentifiedImageError, AttributeError, TypeError, Image.DecompressionBombError) as error:
        raise SampleError("undecodable", f"no picture: {type(error).__name__} ({error})") from error
