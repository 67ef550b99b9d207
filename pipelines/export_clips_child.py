"""The process that writes clips as mp4: `python -m tokenmill.pipelines.export_clips_child`.

A clip whose first frame and whose end are keyframes is copied packet by packet, at the speed of the disk, if nothing
outside its packets is needed to show it. Any other is decoded as every stage sees it (upright RGB, square pixels) and
encoded as H.264. The first audio stream goes along: copied where mp4 knows the codec, else as AAC.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

from tokenmill.errors import RunError, SampleError
from tokenmill.faults import fault_point
from tokenmill.pipelines.line_child_server import serve
from tokenmill.pipelines.memory_limit import MemoryLimit

_MEMORY_BYTES = 8 << 30
_MAX_PIXELS = 1 << 28
_PLACES_FAULT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)


class Exporter:
    """Keeps the last film open: clips of one film come in order."""

    def __init__(self) -> None:
        self._film: Any = None
        self._identity: tuple[Any, ...] = ()

    def __call__(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Write one clip; returns `how`. RunError: there is no room for it, or it must not be written."""
        import av

        from tokenmill.pipelines.export_clips_media import ClipPlace, copied, encoded

        fault_point("export:clip")
        film = self._opened(question["film"])
        place = ClipPlace(question["film"], film, question["start_frame"], question["end_frame"])
        try:
            if copied(place, question["to"]):
                return {"how": "copied"}
            encoded(place, question["to"])
        except SampleError:
            self._film = None
            raise
        except av.error.FFmpegError as error:
            self._film = None
            if error.errno in _PLACES_FAULT:
                raise RunError(f"no clip can be written there: {os.strerror(error.errno)}") from error
            raise SampleError("not_written", f"FFmpeg cannot write it as mp4 ({type(error).__name__})") from error
        return {"how": "encoded"}

    def _opened(self, path: str) -> Any:
        from tokenmill.pipelines.film import Film

        status = os.stat(path)  # noqa: PTH116
        identity = (path, status.st_ino, status.st_size, status.st_mtime_ns)
        if self._film is None or identity != self._identity:
            if self._film is not None:
                self._film.close()
            self._film = None
            self._film, self._identity = Film(path, max_pixels=_MAX_PIXELS).open(), identity
        return self._film


def _prepare() -> bool:
    import tokenmill.pipelines.export_clips_media  # noqa: F401  slow, and none of the first clip's time

    MemoryLimit(_MEMORY_BYTES)
    return True


if __name__ == "__main__":
    serve(Exporter(), _prepare)
