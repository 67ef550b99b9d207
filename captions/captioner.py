"""What a captioner is, and how a recipe names one.

An engine answers a batch of samples, each by itself: captions, or the SampleError that becomes the sample's failed row.
What was answered is kept by the caption stage, so an engine needs no cache, no resume and no files of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tokenmill.errors import SampleError
from tokenmill.plugins import build

# What the source says: `key`, `caption`, `metadata` (a mapping); and `pixels` (HWC or THWC) for engines that need them.
Sample = Mapping[str, Any]
Answer = tuple[str, ...] | SampleError  # variants of one caption, the best first

ENTRY_POINT_GROUP = "tokenmill.captioners"
BUILT_IN = {"metadata": "tokenmill.captions.metadata:MetadataCaptioner"}


class Captioner(Protocol):
    """Gives samples their captions; built from a recipe's settings by a factory that takes them as keywords."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int:
        """Counts changes of what the same settings answer."""

    @property
    def needs_pixels(self) -> bool:
        """Whether samples must be decoded for it."""

    @property
    def batch_size(self) -> int:
        """How many samples a call gets."""

    @property
    def fingerprint(self) -> str:
        """Hex sha256 over name, version, settings and weights."""

    def caption(self, samples: Sequence[Sample]) -> Sequence[Answer]:
        """Answer each sample, in order."""


def build_captioner(name: str, settings: Mapping[str, Any] | None = None) -> Captioner:
    """Build the captioner a recipe names; raises RecipeError for unknown names and settings."""
    captioner: Captioner = build("captioner", name, settings or {}, BUILT_IN, ENTRY_POINT_GROUP)
    return captioner
