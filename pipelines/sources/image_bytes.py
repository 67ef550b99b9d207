"""What kind of picture some bytes are, from the bytes alone: names, media types and columns lie.

Only the header is read (about 0.1 ms); whether the rest can be decoded is the scorers' matter, which see it anyway.
"""

from __future__ import annotations

from PIL import UnidentifiedImageError

from tokenmill.errors import SampleError
from tokenmill.pipelines.decode_image import open_known
from tokenmill.pipelines.fault_message import fault_message

_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "JPEG2000": "jp2", "TIFF": "tiff"}  # MPO: a JPEG with more behind it
_MARKUP = (b"<!doctype", b"<html", b"<svg", b"<?xml")


def image_extension(data: bytes) -> str:
    """Return the extension of a picture's format, one of those that can be decoded.

    Raises:
        SampleError: `empty`, `not_an_image` (markup is named as such), `corrupt` (a header that cannot be read).
    """
    if not data:
        raise SampleError("empty", "no bytes")
    try:
        with open_known(data) as image:
            kind = str(image.format)
    except UnidentifiedImageError as error:
        start = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        told = "HTML, XML or SVG" if start.startswith(_MARKUP) else f"starts with {data[:8]!r}"
        raise SampleError("not_an_image", told) from error
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # hostile headers make decoders raise anything
        raise SampleError("corrupt", fault_message(error)) from error
    return _EXTENSIONS.get(kind, kind.lower())
