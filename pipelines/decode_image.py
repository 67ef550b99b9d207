"""Bytes of a picture to pixels, with a defined result for every odd kind and a reason for every broken one.

Pillow reads every header and decodes everything but sound JPEGs: OpenCV returns a half-grey picture for a truncated one
without a word, and has no cap on the size before it decodes. Sound JPEGs go through simplejpeg (libjpeg-turbo), which
gives the same bits (tested) in 3.0 instead of 4.2 ms for 0.9 megapixels on one core; one it complains about goes back
to Pillow, whose word it is that counts.

What comes out: HWC uint8 RGB, EXIF orientation applied, transparency laid on white, the first frame of an animation,
16 bits reduced to their high byte, colour profiles ignored.
"""

from __future__ import annotations

import struct
import warnings
from io import BytesIO

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from tokenmill.errors import SampleError
from tokenmill.filters.picture import Kind, luma_of, reduced
from tokenmill.pipelines.fault_message import fault_message

# Formats whose decoders are safe on hostile bytes: no EPS (runs Ghostscript), nothing that is a document.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP")
# What Pillow's decoders raised over 13,000 spoiled pictures of 9 formats; MemoryError and ImportError are none of them.
_BAD_BYTES = (OSError, SyntaxError, ValueError, OverflowError, RuntimeError, EOFError, struct.error)
_STRIP_ROWS = 256
# EXIF orientation → how rows and columns run, after the axes were swapped where it is 5 or more.
_MIRRORED = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}

warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # a broken EXIF block is not worth a line
ImageFile.LOAD_TRUNCATED_IMAGES = False  # a grey lower half is no picture
Image.MAX_IMAGE_PIXELS = None  # the cap is max_pixels below, an error of the sample and no warning


def decode_image(data: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """Decode one picture to HWC uint8 RGB, see `open_image`."""
    return open_image(data, max_pixels=max_pixels)("rgb", 1)


def open_image(data: bytes, *, max_pixels: int) -> EncodedImage:
    """Read a picture's header and check its size.

    Raises:
        SampleError: `empty`, `not_an_image`, `too_many_pixels` (from the header, before decoding), `truncated`,
            `corrupt`; decoding raises the last two and `unsupported_pixels` (floating point).
    """
    if not data:
        raise SampleError("empty", "no bytes")
    image = read_header(data)
    width, height = image.size
    if width * height > max_pixels:
        raise SampleError("too_many_pixels", f"{width} x {height} is more than {max_pixels} pixels")
    return EncodedImage(data, image)


class EncodedImage:
    """A picture whose header has been read; calling it decodes a view."""

    def __init__(self, data: bytes, image: Image.Image) -> None:
        self._data = data
        self._coded_size = image.size
        # Else CMYK, or no JPEG at all; of an MPO, the first picture is a JPEG like any other.
        self._simple = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
        self._orientation = orientation_of(image)
        # The EXIF of a PNG may stand behind its pixels, which are then decoded by now.
        self._read = image if image.format == "PNG" else None
        self._whole: NDArray[np.uint8] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, upright."""
        width, height = self._coded_size
        return (height, width) if self._orientation >= 5 else (width, height)

    def __call__(self, kind: Kind, scale: int) -> NDArray[np.uint8]:
        """Decode to HWC RGB or HW luma, upright, at 1/scale of its size.

        Raises:
            SampleError: `truncated`, `corrupt`, `unsupported_pixels`.
        """
        if self._simple:
            return _turned(self._jpeg(kind, scale), self._orientation)
        if self._whole is None:
            self._whole = _turned(np.asarray(_rgb(self._loaded())), self._orientation)
        image = reduced(self._whole, scale)
        return image if kind == "rgb" else luma_of(image)

    def release(self) -> None:
        """Let go of the whole pixels; another view decodes them again."""
        self._read = self._whole = None

    def _jpeg(self, kind: Kind, scale: int) -> NDArray[np.uint8]:
        width, height = (-(-side // scale) for side in self._coded_size)
        try:
            coded_height, coded_width, *_ = simplejpeg.decode_jpeg_header(self._data)
            if (coded_width, coded_height) == self._coded_size:  # else the header was read in two ways: no fast lane
                pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
                    self._data, "RGB" if kind == "rgb" else "GRAY", min_height=height, min_width=width,
                    min_factor=2.0 if scale > 1 else 1.0,
                )  # fmt: skip
                if pixels.shape[:2] == (height, width):
                    return pixels if kind == "rgb" else pixels[..., 0]
        except ValueError:  # damaged; whether there is a picture in it all the same is Pillow's to say
            pass
        mode = "RGB" if kind == "rgb" else "L"
        image = self._loaded(mode, scale)
        return np.asarray(image if image.mode == mode else image.convert(mode))

    def _loaded(self, mode: str = "", scale: int = 1) -> Image.Image:
        image, self._read = self._read or read_header(self._data), None
        try:
            if mode:
                width, height = (max(1, side // scale) for side in image.size)
                image.draft(mode, (width, height))
            image.load()
        except _BAD_BYTES as error:
            raise _fault(error) from error
        return image


def open_known(data: bytes) -> Image.Image:
    """Open a picture of one of `FORMATS`; raises what Pillow raises."""
    Image.init()  # only five formats are known without: 40 ms once, not at import, where no picture may follow
    return Image.open(BytesIO(data), formats=FORMATS)


def read_header(data: bytes) -> Image.Image:
    """Read the header alone; raises SampleError (`not_an_image`, `corrupt`, `truncated`)."""
    try:
        return open_known(data)
    except UnidentifiedImageError as error:
        if data.startswith(_SIGNATURES) or data[8:12] in (b"WEBP", b"avif"):
            raise SampleError("corrupt", "the header is damaged or of an unknown kind") from error
        raise SampleError("not_an_image", f"starts with {data[:8]!r}") from error
    except _BAD_BYTES as error:
        raise _fault(error) from error


def orientation_of(image: Image.Image) -> int:
    """Read EXIF orientation; EXIF that can't be read is no reason to lose the picture. A PNG may be decoded for it."""
    if image.format == "TIFF":  # Pillow turns it as it loads, and gives its size upright
        return 1
    try:
        return int(image.getexif().get(0x0112, 1))
    except (*_BAD_BYTES, TypeError):
        return 1


def _turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn pixels upright; what comes out is contiguous and may be written to."""
    if orientation in _MIRRORED:
        pixels = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
        rows, columns = _MIRRORED[orientation]
        pixels = pixels[::rows, ::columns]
    return np.require(pixels, requirements=["C", "W"])


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise SampleError("unsupported_pixels", "32-bit floating point")
    if image.mode.startswith("I"):
        high_byte = np.clip(np.asarray(image).astype(np.int64), 0, 65_535) >> 8
        image = Image.fromarray(high_byte.astype(np.uint8), "L")
    if image.has_transparency_data:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Lay a picture on white, some rows at a time: whole, it would take three times its memory."""
    width, height = image.size
    laid = Image.new("RGB", image.size)
    for top in range(0, height, _STRIP_ROWS):
        strip = image.crop((0, top, width, min(top + _STRIP_ROWS, height))).convert("RGBA")
        white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
        laid.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return laid


def _fault(error: Exception) -> SampleError:
    text = fault_message(error)
    cut = "truncated" in text.lower() or isinstance(error, EOFError)
    return SampleError("truncated" if cut else "corrupt", text)
