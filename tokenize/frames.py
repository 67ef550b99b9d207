"""A stretch of a clip as a document of its own.

Windows of frames are encoded independently (EMU3.md §2), so latent frames [start, start + count) of a clip hold the
same codes as that stretch encoded alone. That is what lets a plan split a clip that is longer than the context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tokenmill.errors import SampleError
from tokenmill.tokenize.segments import Segment, TextSegment, VisionSegment


def take_frames(segments: Sequence[Segment], start: int, count: int) -> list[Segment]:
    """Give the sample's segments with its one clip cut to latent frames [start, start + count).

    It says the same as the stretch tokenized alone would: the clip's rate, and its own seconds to a millisecond; and of
    each caption that was told in stretches, the one that the run shares most of its time with, the first of equals.
    Raises SampleError (`not_one_clip`) unless there is exactly one vision segment, with that many frames.
    """
    clips = [segment for segment in segments if isinstance(segment, VisionSegment)]
    if len(clips) != 1 or start < 0 or count < 1 or start + count > clips[0].t:
        raise SampleError("not_one_clip", f"latent frames [{start}, {start + count}) of {len(clips)} vision segments")
    (clip,) = clips
    seconds = None if clip.seconds is None else round(clip.seconds * count / clip.t, 3)
    part = replace(clip, t=count, offset=clip.offset + start * clip.h * clip.w, seconds=seconds)
    cut = [part if segment is clip else segment for segment in segments]
    if clip.seconds is None:
        return cut
    return _told(cut, clip.seconds * start / clip.t, clip.seconds * (start + count) / clip.t)


def _told(segments: Sequence[Segment], start_s: float, end_s: float) -> list[Segment]:
    """Put the stretch that overlaps [start_s, end_s) most in the place of each caption that has stretches."""
    best: dict[int, tuple[float, TextSegment]] = {}
    for segment in segments:
        if isinstance(segment, TextSegment) and segment.seconds is not None:
            overlap_s = min(end_s, segment.seconds[1]) - max(start_s, segment.seconds[0])
            if segment.variant not in best or overlap_s > best[segment.variant][0] + 1e-6:
                best[segment.variant] = (overlap_s, segment)
    found: list[Segment] = []
    for segment in segments:
        if isinstance(segment, TextSegment) and segment.role == "caption" and segment.variant in best:
            found.append(replace(best[segment.variant][1], role="caption", seconds=None))
        elif not isinstance(segment, TextSegment) or segment.role != "stretch":
            found.append(segment)
    return found
