"""The process that decodes clips for `vision_clips.py`: a JSON request a line on stdin, a JSON header and pixels back.

A window is looked up by its time: the container seeks to the key frame before it and decodes forward from there, so a
draw from a two-hour film costs one group of pictures. Where the index leads behind the time, decoding begins at the
film's start. A remote film is read in ranges; its credentials come over stdin.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenmill.errors import SampleError, TokenmillError
from tokenmill.manifests.storage import Store, open_store

_SLACK_S = 1e-3


def main() -> None:
    """Answer requests until stdin ends, silently: FFmpeg writes a line for every broken frame."""
    answers = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    stores: dict[str, Store] = {}
    for line in sys.stdin.buffer:
        request = json.loads(line)
        header, pixels = _answered(request, stores)
        answers.write(json.dumps(header).encode() + b"\n")
        if pixels is not None:
            answers.write(pixels.tobytes())
        answers.flush()


def _answered(request: dict[str, Any], stores: dict[str, Store]) -> tuple[dict[str, Any], NDArray[np.uint8] | None]:
    try:
        url = request["url"]
        if url not in stores:
            stores[url] = open_store(url, request["options"])
        with _opened(stores[url], request["path"]) as film:
            frames = np.stack(_window(film, request))
        return {"shape": frames.shape}, frames
    except SampleError as error:
        return {"reason": error.reason, "message": error.message}, None
    except TokenmillError as error:  # the store's fault, no sample's
        return {"fatal": str(error)}, None
    except (ImportError, MemoryError) as error:
        return {"fatal": f"{type(error).__name__}: {error}"}, None
    except Exception as error:  # hostile bytes make PyAV raise anything
        return {"reason": "decoder_error", "message": type(error).__name__}, None


@contextmanager
def _opened(store: Store, path: str) -> Iterator[Any]:
    local = store.local_path(path)
    if local is not None:
        if not local.exists():
            raise TokenmillError(f"{store.url}/{path}: not there; run the recipe again up to split")
        with av.open(str(local)) as container:
            yield container
        return
    with store.open(path) as file, av.open(file) as container:
        yield container


def _window(film: Any, request: dict[str, Any]) -> list[NDArray[np.uint8]]:
    stream = film.streams.video[0]
    if stream.codec_context.width * stream.codec_context.height > request["max_pixels"]:
        raise SampleError("too_many_pixels", f"frames of more than {request['max_pixels']} pixels")
    stream.thread_type = "NONE"
    frames = _from(film, stream, request, seek=True)
    if not frames:
        frames = _from(film, stream, request, seek=False)
    if len(frames) < request["frames"]:
        raise SampleError("no_frames", f"{len(frames)} of {request['frames']} frames at {request['seconds']:.3f} s")
    return frames


def _from(film: Any, stream: Any, request: dict[str, Any], *, seek: bool) -> list[NDArray[np.uint8]]:
    """Return the frames from a time on; none where seeking led behind it."""
    begin = stream.start_time or 0
    wanted_s = request["seconds"]
    film.seek(begin + int((wanted_s if seek else 0.0) / stream.time_base), stream=stream)
    found: list[NDArray[np.uint8]] = []
    is_first = True
    for frame in film.decode(stream):
        at_s = float((frame.pts - begin) * stream.time_base) if frame.pts is not None else 0.0
        if is_first and seek and wanted_s > 0 and at_s > wanted_s + _SLACK_S:
            return []
        is_first = False
        if at_s >= wanted_s - _SLACK_S:
            found.append(_shrunk(frame, request["short_side"]))
            if len(found) == request["frames"]:
                break
    return found


def _shrunk(frame: Any, short_side: int) -> NDArray[np.uint8]:
    by = short_side / min(frame.height, frame.width)
    size = (max(short_side, round(frame.width * by)), max(short_side, round(frame.height * by)))
    return np.asarray(frame.to_image().resize(size, Image.Resampling.BICUBIC))


if __name__ == "__main__":
    main()
