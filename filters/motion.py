"""The scorer `motion`: optical flow between a clip's sampled frames, by OpenCV's DIS or by RAFT.

motion: {}                                                    DIS, 2 ms a pair
motion: {flow: raft_large, weights: /models/raft_large.safetensors, device: cuda}     what Emu3 used (EMU3.md §1)

Pans by a known share of the shorter edge, on a window of 455 x 256: milliseconds a pair, and the worst error of the
mean flow over five photographs and two directions (`benchmarks/video_scorers.py`; brick and gravel are in the docs):

    preset     side   ms    .01   .02   .04   .08   .12   .16   .20   .30
    ultrafast  128    0.7   .08   .07   .05   .03   .03   .08   .47   .64
    ultrafast  256    1.9   .08   .04   .01   .01   .02   .19   .46   .69
    fast       128    1.0   .23   .15   .04   .01   .03   .02   .41   .64
    fast       160    1.4   .07   .08   .02   .01   .01   .11   .46   .73
    fast       256    3.0   .07   .03   .01   .02   .01   .17   .42   .68    the default
    medium     256    11.6  .05   .03   .01   .01   .01   .01   .25   .49
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.filters.clip import Clip
from tokenmill.filters.motion_dis import Preset, flows_between
from tokenmill.filters.motion_figures import COLUMNS, STATIC_BELOW, figures_of, paces_of, step_of
from tokenmill.filters.motion_raft import RaftMotion
from tokenmill.filters.scorer import Columns, Scorer, fingerprint_of


@dataclass(frozen=True, kw_only=True)
class DisMotion:
    """Mean length of the flow over all pixels ÷ shorter edge, by dense inverse search.

    Args:
        flow: which algorithm.
        preset: of OpenCV's: what is spent on a pair.
        short_side_px: frames are shrunk to this before.
        static_below: what moves less between two frames counts as still.
    """

    flow: Literal["dis"] = "dis"
    preset: Preset = "fast"
    short_side_px: Annotated[int, Field(ge=64, le=2160)] = 256
    static_below: Annotated[float, Field(ge=0)] = STATIC_BELOW

    name: ClassVar = "motion"
    version: ClassVar = 1
    takes: ClassVar[Literal["video"]] = "video"
    batch_size: ClassVar = 1
    columns: ClassVar = COLUMNS

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self)

    def score(self, batch: Sequence[Clip]) -> Columns:
        """Score clips one by one."""
        scored = [self._scored(clip) for clip in batch]
        return {column: [figures[column] for figures in scored] for column in COLUMNS}

    def _scored(self, clip: Clip) -> Mapping[str, float | None]:
        side = min(*clip.frames.shape[1:3], self.short_side_px)
        paces = paces_of(clip.seconds, clip.fps, side)
        flows = flows_between(clip.frames, self.preset, side)
        return figures_of([step_of(*pair) for pair in zip(flows, paces, strict=True)], self.static_below)


def motion(**settings: Any) -> Scorer:
    """Build the scorer `motion`; `flow` decides which kind: `dis`, `raft_small` or `raft_large`."""
    return _built(DisMotion if settings.get("flow", "dis") == "dis" else RaftMotion, settings)


def _built(kind: Callable[..., Scorer], settings: Mapping[str, Any]) -> Scorer:
    """Build one kind; pydantic itself would overlook a setting that belongs to the other."""
    allowed = sorted(inspect.signature(kind).parameters)
    unknown = sorted(set(settings) - set(allowed))
    if unknown:
        raise ValueError(
            f"unknown setting {unknown[0]!r} for flow {settings.get('flow', 'dis')!r}; allowed: {', '.join(allowed)}"
        )
    return kind(**settings)
