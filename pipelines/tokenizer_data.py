"""Pictures and clips to measure a vision tokenizer on: folders, raw shards (`.tar`), single files; local or by URL.

No index is needed and nothing is written: one pass in the order of names, one picture or batch of frames in memory.
"""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError, SampleError
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.decode_image import decode_image
from tokenmill.pipelines.decode_video import VideoDecoder
from tokenmill.pipelines.decoding import DecodeLimits
from tokenmill.pipelines.sources.webdataset import EXTENSIONS

Pixels = NDArray[np.uint8]
Kind = Literal["image", "video"]

_IMAGES, _VIDEOS = (tuple(f".{one}" for one in EXTENSIONS[kind]) for kind in ("image", "video"))
_LARGEST_IMAGE = 256 * 2**20  # bytes of a picture in a shard
_LARGEST_VIDEO = 16 * 2**30
_BLOCK = 2**20


@dataclass(frozen=True, slots=True)
class Original:
    """One picture (a single batch of one frame) or clip (batches of frames, THWC), or why it is none.

    Reading the batches may raise SampleError.
    """

    kind: Kind
    name: str
    batches: Iterator[Pixels]


def originals(
    paths: Sequence[str], limits: DecodeLimits, storage: Mapping[str, Any] | None = None
) -> Iterator[Original]:
    """Yield every picture and clip below the paths; each has to be used up before the next.

    Raises:
        RecipeError: nothing is at a path, or nothing there is a picture, a clip or a shard.
    """
    with limits.video_decoder() as decoder:
        for path in paths:
            store, names = _listed(path, storage or {})
            for name in names:
                yield from _of_file(store, name, limits, decoder)


def check_paths(paths: Sequence[str], storage: Mapping[str, Any] | None = None) -> None:
    """Raise RecipeError where a path holds nothing to measure on."""
    for path in paths:
        _listed(path, storage or {})


def _listed(path: str, storage: Mapping[str, Any]) -> tuple[Store, list[str]]:
    """Return a store and the names in it: a folder is a store of its own, a file is one of its folder's."""
    store = open_store(path.rstrip("/") or path, storage)
    if store.exists(""):
        folder, _, name = store.url.rpartition("/")
        store, names = open_store(folder or "/", storage), [name]
    else:
        names = [one.path for one in store.files()]
    names = [name for name in names if name.lower().endswith((*_IMAGES, *_VIDEOS, ".tar"))]
    if not names:
        raise RecipeError(f"--data {path}: no picture, clip or shard (.tar) is there")
    return store, names


def _of_file(store: Store, name: str, limits: DecodeLimits, decoder: VideoDecoder) -> Iterator[Original]:
    low = name.lower()
    if low.endswith(".tar"):
        with store.open(name) as stream:
            yield from _of_shard(name, stream, limits, decoder)
    elif low.endswith(_IMAGES):
        yield Original("image", name, _picture(store, name, limits))
    else:
        yield Original("video", name, _film(store, name, decoder))


def _picture(store: Store, name: str, limits: DecodeLimits) -> Iterator[Pixels]:
    yield decode_image(store.read_bytes(name), max_pixels=limits.max_pixels)[None]


def _film(store: Store, name: str, decoder: VideoDecoder) -> Iterator[Pixels]:
    with store.local_copy(name) as path:
        yield from decoder.scan(path)


def _of_shard(name: str, stream: IO[bytes], limits: DecodeLimits, decoder: VideoDecoder) -> Iterator[Original]:
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                low = member.name.lower()
                if member.isfile() and low.endswith((*_IMAGES, *_VIDEOS)):
                    kind: Kind = "image" if low.endswith(_IMAGES) else "video"
                    yield Original(kind, f"{name}/{member.name}", _member(archive, member, kind, limits, decoder))
    except (tarfile.TarError, EOFError) as error:
        yield Original("image", name, Broken(SampleError("bad_archive", f"{name}: {error}")))


def _member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, kind: Kind, limits: DecodeLimits, decoder: VideoDecoder
) -> Iterator[Pixels]:
    if member.size > (_LARGEST_IMAGE if kind == "image" else _LARGEST_VIDEO):
        raise SampleError("too_many_bytes", f"{member.name} has {member.size} bytes")
    file = archive.extractfile(member)
    assert file is not None  # it is a file
    if kind == "image":
        yield decode_image(_read(file, member.size), max_pixels=limits.max_pixels)[None]
        return
    with tempfile.NamedTemporaryFile(prefix="tokenmill-", suffix=Path(member.name).suffix) as copy:
        for start in range(0, member.size, _BLOCK):
            copy.write(_read(file, min(_BLOCK, member.size - start)))
        copy.flush()
        yield from decoder.scan(copy.name)


def _read(file: IO[bytes], length: int) -> bytes:
    try:
        return file.read(length)
    except tarfile.ReadError as error:
        raise SampleError("truncated", "the shard ends within the member") from error


class Broken(Iterator[Pixels]):
    """Raises where the pixels would be read."""

    def __init__(self, error: SampleError) -> None:
        self._error = error

    def __next__(self) -> Pixels:
        raise self._error
