"""Pictures as files for whoever asks a server: the original where it will do, else one made anew.

Decoding, shrinking and encoding 4 megapixels costs 40 ms of a core, passing the original on less than 1, most of it
sha256. So what the formats themselves say is believed: kind, size, depth, orientation, and that the file's end is there
(a PNG's checksums too, 0.4 ms for 1 MB). Damage in the middle of a JPEG or WebP shows in a full decode alone, as
scorers have done by then; a file that lacks its end is decoded, which tells what is wrong or what can be saved.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from tokenmill.captions.captioner import EncodedPicture
from tokenmill.errors import SampleError
from tokenmill.filters.picture import View
from tokenmill.filters.shrink import shrink
from tokenmill.pipelines.decode_image import open_image, orientation_of, read_header

QUALITY = 92
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_JPEG_END = b"\xff\xd9"
_MEDIA_TYPES = {"JPEG": "image/jpeg", "WEBP": "image/webp"}  # not MPO: a JPEG with others behind it
_GREY_OR_RGB = (0, 2)  # colour types of PNG without palette and transparency
_SPECIAL_CHUNKS = (b"tRNS", b"acTL", b"eXIf")  # transparent, animated, perhaps turned


def encoded_picture(data: bytes, *, max_side_px: int | None, max_pixels: int) -> EncodedPicture:
    """Return the picture as a file of at most `max_side_px`: `data` itself, or a JPEG of what `decode_image` sees.

    Passed on as they are: whole JPEG, PNG and WebP files of 8 bits, grey or RGB, upright, that don't move.

    Raises:
        SampleError: as `open_image` and decoding do.
    """
    media_type = plain_media_type(data, max_side_px=max_side_px, max_pixels=max_pixels)
    if media_type is not None:
        return EncodedPicture(data=data, media_type=media_type)
    return as_jpeg(shrunk_picture(data, max_side_px=max_side_px, max_pixels=max_pixels))


def shrunk_picture(data: bytes, *, max_side_px: int | None, max_pixels: int) -> NDArray[np.uint8]:
    """Decode to HWC RGB with no side above `max_side_px`: by libjpeg's own scales first, then by area."""
    image = open_image(data, max_pixels=max_pixels)
    if max_side_px is None:
        return image("rgb", 1)
    return shrink(image("rgb", View(longest_side_px=max_side_px).scale(*image.size)), max_side_px)


def as_jpeg(image: NDArray[np.uint8]) -> EncodedPicture:
    """Encode HWC RGB with full colour resolution: subsampled, small print and thin lines in colour are blurred."""
    data = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=QUALITY, colorspace="RGB", colorsubsampling="444"
    )
    return EncodedPicture(data=data, media_type="image/jpeg")


def plain_media_type(data: bytes, *, max_side_px: int | None, max_pixels: int) -> str | None:
    """Return the media type of a picture that can be passed on as it is, None for any other."""
    if data.startswith(_PNG):
        return "image/png" if _is_plain_png(data, max_side_px, max_pixels) else None
    if not (_is_whole_jpeg(data) or _is_whole_webp(data)):
        return None
    try:
        image = read_header(data)
    except SampleError:  # decoding says it again
        return None
    plain = image.mode in ("RGB", "L") and not getattr(image, "is_animated", False) and orientation_of(image) in (0, 1)
    if not (plain and _fits(image.size, max_side_px, max_pixels)):
        return None
    return _MEDIA_TYPES.get(image.format or "")


def _fits(size: tuple[int, int], max_side_px: int | None, max_pixels: int) -> bool:
    width, height = size
    return width * height <= max_pixels and (max_side_px is None or max(size) <= max_side_px)


def _is_whole_jpeg(data: bytes) -> bool:
    return data.startswith(_JPEG) and data.endswith(_JPEG_END)


def _is_whole_webp(data: bytes) -> bool:
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return False
    (length,) = struct.unpack("<I", data[4:8])
    return bool(length + 8 == len(data))


def _is_plain_png(data: bytes, max_side_px: int | None, max_pixels: int) -> bool:
    """Walk the chunks up to IEND, without Pillow: for a PNG's EXIF it would decode the pixels."""
    place = len(_PNG)
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        end = place + 12 + length
        kind, body = data[place + 4 : place + 8], memoryview(data)[place + 4 : end - 4]
        is_whole = end <= len(data) and zlib.crc32(body) == struct.unpack(">I", data[end - 4 : end])[0]
        if not is_whole or kind in _SPECIAL_CHUNKS:
            return False
        if place == len(_PNG) and not (kind == b"IHDR" and _is_plain_header(body[4:], max_side_px, max_pixels)):
            return False
        if kind == b"IEND":
            return True
        place = end
    return False


def _is_plain_header(header: memoryview, max_side_px: int | None, max_pixels: int) -> bool:
    if len(header) != 13:
        return False
    width, height, depth, colours = struct.unpack(">IIBB", header[:10])
    sides = min(width, height) > 0 and _fits((width, height), max_side_px, max_pixels)
    return bool(sides and depth == 8 and colours in _GREY_OR_RGB)
