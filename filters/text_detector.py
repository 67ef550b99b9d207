"""Find text in a picture with PaddleOCR's detector (PP-OCRv6 small, 10 MB, carried by the `rapidocr` wheel).

Only the wheel's weights are used, through onnxruntime on one thread. Importing `rapidocr` itself would bring four more
packages and a downloader; the boxes here cover the same share of the picture within 0.02 on 28 of 32 tries (the rest
are borderline boxes: rapidocr shrinks by sampling, we by averaging).
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError
from tokenmill.filters.picture import Image
from tokenmill.manifests.identity import sha256_hex

WEIGHTS = "PP-OCRv6_det_small.onnx"
_MIN_PIXEL, _MIN_BOX, _UNCLIP, _MIN_SIDE_PX, _MOST_BOXES = 0.3, 0.5, 1.6, 3, 1000  # as in rapidocr's config.yaml
_MULTIPLE_PX = 32  # what the network's strides ask for


def text_boxes(image: Image) -> tuple[list[NDArray[np.int32]], tuple[int, int]]:
    """Detect text in HWC `image`; returns boxes of 4 corners and the (height, width) of the map they lie in."""
    import cv2

    chances = _text_map(image)
    mask = cv2.dilate((chances > _MIN_PIXEL).astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    boxes = [_box(contour, chances) for contour in contours[:_MOST_BOXES]]
    height, width = chances.shape
    return [box for box in boxes if box is not None], (height, width)


def weights_path() -> Path:
    """Locate the model file; raises RecipeError when the wheel doesn't carry it."""
    spec = importlib.util.find_spec("rapidocr")
    path = Path(spec.origin).parent / "models" / WEIGHTS if spec and spec.origin else None
    if path is None or not path.exists():
        raise RecipeError(f"scorer 'text_coverage': {WEIGHTS} not found; install rapidocr 3.10 or newer")
    return path


@cache
def weights_digest() -> str:
    """Return the sha256 of the model file."""
    return sha256_hex(weights_path().read_bytes())


@cache
def _session() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(weights_path(), options, providers=["CPUExecutionProvider"])


def _text_map(image: Image) -> NDArray[np.float32]:
    """Return the chance of text per pixel of the image scaled to multiples of 32."""
    import cv2

    height, width = (max(_MULTIPLE_PX, round(side / _MULTIPLE_PX) * _MULTIPLE_PX) for side in image.shape[:2])
    bgr = cv2.resize(image, (width, height))[..., ::-1]
    scaled_CHW = (bgr.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)
    session = _session()
    chances: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: scaled_CHW[None]})[0][0, 0]
    return chances


def _box(contour: NDArray[np.int32], chances: NDArray[np.float32]) -> NDArray[np.int32] | None:
    """Turn a contour into its grown box (the network is trained on shrunken ones); None when it is no text."""
    import cv2

    centre, (width, height), angle = cv2.minAreaRect(contour)
    if min(width, height) < _MIN_SIDE_PX:
        return None
    if _mean_inside(chances, _corners(centre, (width, height), angle)) < _MIN_BOX:
        return None
    grow = _UNCLIP * width * height / (width + height)
    return _corners(centre, (width + grow, height + grow), angle)


def _corners(centre: Any, size: tuple[float, float], angle: float) -> NDArray[np.int32]:
    import cv2

    corners: NDArray[np.int32] = np.round(cv2.boxPoints((centre, size, angle))).astype(np.int32)
    return corners


def _mean_inside(chances: NDArray[np.float32], corners: NDArray[np.int32]) -> float:
    import cv2

    last = np.array(chances.shape[::-1]) - 1
    left, top = corners.min(axis=0).clip(0, last)
    right, bottom = corners.max(axis=0).clip(0, last)
    inside = np.zeros((bottom - top + 1, right - left + 1), np.uint8)
    cv2.fillPoly(inside, [corners - (left, top)], 1)
    return float(cv2.mean(chances[top : bottom + 1, left : right + 1], inside)[0])
