"""A clip as the scorers of a pass share it: whole for those of clips, frame by frame for those of pictures.

Its frames are views of one array, and each becomes a picture once, so what a scorer leaves beside a picture (CLIP's
square) serves the next. Pixels of a clip of 20 s at 2 frames a second and 256 px take 14 MB: whoever is through with
them says `forget`.
"""

from __future__ import annotations

from tokenmill.errors import RunError
from tokenmill.filters.clip import Clip
from tokenmill.filters.picture import Image, Kind, Picture


class Footage:
    """A clip and its frames; without a clip nothing but a digest and a caption, for those who need no pixel."""

    def __init__(self, clip: Clip | None, *, sha256: str = "", caption: str | None = None) -> None:
        self._clip = clip
        self.sha256, self.caption = sha256, caption
        self._made: dict[int, Picture] = {}

    @classmethod
    def of(cls, clip: Clip) -> Footage:
        """Share a clip."""
        return cls(clip, sha256=clip.sha256, caption=clip.caption)

    @property
    def clip(self) -> Clip:
        """The clip; raises RunError where nobody was to look at it."""
        if self._clip is None:
            raise RunError("a scorer that was not to look at a clip's frames asked for them")
        return self._clip

    @property
    def has_frames(self) -> bool:
        return self._clip is not None

    @property
    def num_frames(self) -> int:
        return len(self.clip.frames)

    def picture(self, number: int) -> Picture:
        """Return a frame as a picture, which knows how large the film is."""
        if number not in self._made:
            clip = self.clip
            self._made[number] = Picture.of(
                clip.frames[number], sha256=self.sha256, caption=self.caption,
                source_size=(clip.width_px, clip.height_px),
            )  # fmt: skip
        return self._made[number]

    def unseen(self) -> Picture:
        """Return a picture of which nobody may ask for pixels."""
        return unseen_picture(self.sha256, self.caption)

    def release(self) -> None:
        """Let go of what was made of the frames and is large."""
        for picture in self._made.values():
            picture.release()

    def forget(self) -> None:
        """Let go of all pixels: every scorer that looks has looked."""
        self._clip = None
        self._made = {}


def unseen_picture(sha256: str, caption: str | None) -> Picture:
    """Return a picture of which no byte was read: caption and digest as indexed."""

    def decode(kind: Kind, scale: int) -> Image:
        raise RunError("a scorer that says it looks at captions alone (views = ()) asked for pixels")

    return Picture(decode, 0, 0, sha256=sha256, caption=caption)
