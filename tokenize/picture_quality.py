"""How near a decoded picture is to its original: PSNR and SSIM, the one implementation of both.

SSIM is that of Wang et al. 2004 (a gaussian window of 11 x 11 with sigma 1.5) on each colour by itself, averaged:
`skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)` to 1e-6. On luma
alone, as some papers take it, pictures score some hundredths more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Pixels = NDArray[np.uint8]

WINDOW_PX = 11
_SIGMA = 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr_db(one: Pixels, two: Pixels) -> float:
    """Return the peak signal-to-noise ratio of two pictures (or clips) in dB; infinite for equal ones."""
    error = float(np.mean((one.astype(np.float64) - two.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(one_BHWC: Pixels, two_BHWC: Pixels, device: str = "cpu") -> NDArray[np.float64]:
    """Return the structural similarity (B) of pictures of 11 x 11 pixels or more, 1 for equal ones.

    Raises ValueError for smaller ones. One picture at a time: 512 x 512 take some 100 MB.
    """
    if min(one_BHWC.shape[1:3]) < WINDOW_PX:
        raise ValueError(f"SSIM needs sides of {WINDOW_PX} px, found {one_BHWC.shape[1]} x {one_BHWC.shape[2]}")
    return np.array([_ssim(one, two, device) for one, two in zip(one_BHWC, two_BHWC, strict=True)], np.float64)


def _ssim(one_HWC: Pixels, two_HWC: Pixels, device: str) -> float:
    """Variances are small differences of large squares, hence float64."""
    import torch

    x, y = (torch.from_numpy(pixels.astype(np.float64)).to(device).movedim(-1, 0) for pixels in (one_HWC, two_HWC))
    blurred = _blurred(torch.stack([x, y, x * x, y * y, x * y]))
    mean_x, mean_y, square_x, square_y, product = blurred
    variances = square_x - mean_x**2 + square_y - mean_y**2
    covariance = product - mean_x * mean_y
    above = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    below = (mean_x**2 + mean_y**2 + _C1) * (variances + _C2)
    return float((above / below).mean())


def _blurred(planes_NCHW: torch.Tensor) -> torch.Tensor:
    """Apply the window where it lies within the picture."""
    import torch

    places = torch.arange(WINDOW_PX, dtype=torch.float64, device=planes_NCHW.device) - WINDOW_PX // 2
    weights = torch.exp(-(places**2) / (2 * _SIGMA**2))
    weights = weights / weights.sum()
    planes = planes_NCHW.flatten(0, 1)[:, None]
    planes = torch.nn.functional.conv2d(planes, weights[None, None, :, None])
    planes = torch.nn.functional.conv2d(planes, weights[None, None, None, :])
    blurred: torch.Tensor = planes[:, 0].reshape(*planes_NCHW.shape[:2], *planes.shape[-2:])
    return blurred
