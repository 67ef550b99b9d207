"""A stretch of a clip as a document of its own.

Windows of frames are encoded independently (EMU3.md §2), so latent frames [start, start + count) of a clip hold the
same codes as that stretch encoded alone. That is what lets a plan split a clip that is longer than the context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tokenmill.errors import SampleError
from tokenmill.tokenize.segments import Segment, VisionSegment


def take_frames(segments: Sequence[Segment], start: int, count: int) -> list[Segment]:
    """Give the sample's segments with its one clip cut to latent frames [start, start + count).

    It says the same as the stretch tokenized alone would: the clip's rate, and its own seconds to a millisecond.
    Raises SampleError (`not_one_clip`) unless there is exactly one vision segment, with that many frames.
    """
    clips = [segment for segment in segments if isinstance(segment, VisionSegment)]
    if len(clips) != 1 or start < 0 or count < 1 or start + count > clips[0].t:
        raise SampleError("not_one_clip", f"latent frames [{start}, {start + count}) of {len(clips)} vision segments")
    (clip,) = clips
    seconds = None if clip.seconds is None else round(clip.seconds * count / clip.t, 3)
    part = replace(clip, t=count, offset=clip.offset + start * clip.h * clip.w, seconds=seconds)
    return [part if segment is clip else segment for segment in segments]
