"""What is summed up while a vision tokenizer is measured: one tally a size and kind, never a list of all pictures."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.generate.frechet import Moments, frechet_distance
from tokenmill.tokenize.picture_quality import psnr_db, ssim

Pixels = NDArray[np.uint8]
BEST_PSNR_DB = 99.0  # of equal pictures, whose PSNR is infinite


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured beside PSNR and SSIM, where weights are at hand."""

    lpips: Callable[[Pixels, Pixels], NDArray[np.float64]] | None = None
    features: Callable[[Pixels], NDArray[np.float64]] | None = None
    device: str = "cpu"


@dataclass
class Sample:
    """The figures of one picture's or clip's frames so far."""

    psnr_db: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    lpips: list[float] = field(default_factory=list)


class Tally:
    """Means over pictures (or clips, of each the mean over its frames), the codes seen, two sets' moments."""

    def __init__(self, codebook_size: int, measures: Measures) -> None:
        self._measures = measures
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: Counter[str] = Counter()
        self._codes = np.zeros(codebook_size, np.int64)
        self._moments = (Moments(), Moments())
        self.frames = 0
        self.left_out: Counter[str] = Counter()

    def compare(self, sample: Sample, originals_BHWC: Pixels, decoded_BHWC: Pixels, codes: NDArray[Any]) -> None:
        """Take some frames of a sample in."""
        self._codes += np.bincount(codes.ravel(), minlength=len(self._codes))
        pairs = zip(originals_BHWC, decoded_BHWC, strict=True)
        sample.psnr_db += [min(BEST_PSNR_DB, psnr_db(one, two)) for one, two in pairs]
        sample.ssim += ssim(originals_BHWC, decoded_BHWC, self._measures.device).tolist()
        if self._measures.lpips is not None:
            sample.lpips += self._measures.lpips(originals_BHWC, decoded_BHWC).tolist()
        if self._measures.features is not None:
            for moments, pictures in zip(self._moments, (originals_BHWC, decoded_BHWC), strict=True):
                moments.add(self._measures.features(pictures))

    def finish(self, sample: Sample) -> None:
        """Count a sample of which every frame was taken in."""
        self.frames += len(sample.psnr_db)
        for name in ("psnr_db", "ssim", "lpips"):
            values: Sequence[float] = getattr(sample, name)
            if values and not math.isnan(values[0]):
                self._sums[name] += sum(values) / len(values)
                self._counts[name] += 1

    def row(self) -> dict[str, Any]:
        """Return the figures; None for what was not measured."""
        seen = self._codes[self._codes > 0]
        shares = seen / max(1, seen.sum())
        return {
            "samples": self._counts["psnr_db"],
            "frames": self.frames,
            **{name: self._mean(name) for name in ("psnr_db", "ssim", "lpips")},
            "frechet": frechet_distance(*self._moments) if self._moments[0].count > 1 else None,
            "codes": int(self._codes.sum()),
            "codes_seen": len(seen),
            "codebook_usage": len(seen) / len(self._codes),
            "perplexity": float(np.exp(-(shares * np.log(shares)).sum())) if len(seen) else 0.0,
            "left_out": dict(sorted(self.left_out.items())),
        }

    def _mean(self, name: str) -> float | None:
        return self._sums[name] / self._counts[name] if self._counts[name] else None
