"""Bytes of a picture to pixels, with a defined result for every odd kind and a reason for every broken one.

Pillow, and not OpenCV, because OpenCV returns a half-grey picture for a truncated JPEG without a word, and has no cap
on the size before it decodes. The price is speed: 1.1 ms against 0.8 ms for a 512² JPEG on one core.

What comes out: HWC uint8 RGB, EXIF orientation applied, transparency laid on white, the first frame of an animation,
16 bits reduced to their high byte, colour profiles ignored.
"""

from __future__ import annotations

import struct
import warnings
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from tokenmill.errors import SampleError
from tokenmill.pipelines.fault_message import fault_message

# Formats whose decoders are safe on hostile bytes: no EPS (runs Ghostscript), nothing that is a document.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP")
# What Pillow's decoders raised over 13,000 spoiled pictures of 9 formats; MemoryError and ImportError are none of them.
_BAD_BYTES = (OSError, SyntaxError, ValueError, OverflowError, RuntimeError, EOFError, struct.error)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # a broken EXIF block is not worth a line
Image.init()  # only five formats are known without
ImageFile.LOAD_TRUNCATED_IMAGES = False  # a grey lower half is no picture
Image.MAX_IMAGE_PIXELS = None  # the cap is max_pixels below, an error of the sample and no warning


def decode_image(data: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """Decode one picture to HWC uint8 RGB.

    Raises:
        SampleError: `empty`, `not_an_image`, `too_many_pixels` (from the header, before decoding), `truncated`,
            `corrupt`, `unsupported_pixels` (floating point).
    """
    if not data:
        raise SampleError("empty", "no bytes")
    image = _open(data)
    width, height = image.size
    if width * height > max_pixels:
        raise SampleError("too_many_pixels", f"{width} x {height} is more than {max_pixels} pixels")
    try:
        image.load()
    except _BAD_BYTES as error:
        raise _fault(error) from error
    return np.array(_upright(_rgb(image), _orientation(image)))


def _open(data: bytes) -> Image.Image:
    """Read the header alone."""
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        if data.startswith(_SIGNATURES) or data[8:12] in (b"WEBP", b"avif"):
            raise SampleError("corrupt", "the header is damaged or of an unknown kind") from error
        raise SampleError("not_an_image", f"starts with {data[:8]!r}") from error
    except _BAD_BYTES as error:
        raise _fault(error) from error


def _orientation(image: Image.Image) -> int:
    """Read EXIF orientation; EXIF that can't be read is no reason to lose the picture."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except (*_BAD_BYTES, TypeError):
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise SampleError("unsupported_pixels", "32-bit floating point")
    if image.mode.startswith("I"):
        high_byte = np.clip(np.asarray(image).astype(np.int64), 0, 65_535) >> 8
        image = Image.fromarray(high_byte.astype(np.uint8), "L")
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def _fault(error: Exception) -> SampleError:
    text = fault_message(error)
    cut = "truncated" in text.lower() or isinstance(error, EOFError)
    return SampleError("truncated" if cut else "corrupt", text)
