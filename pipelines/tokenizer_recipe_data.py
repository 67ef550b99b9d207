"""The pictures and clips that a recipe selected, to measure a vision tokenizer on: what stage tokenize would take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError, SampleError
from tokenmill.pipelines.chain import Chain
from tokenmill.pipelines.decode_video import VideoDecoder
from tokenmill.pipelines.decoding import SampleReader
from tokenmill.pipelines.selected import Selected
from tokenmill.pipelines.tokenizer_data import Broken, Original

_FRAMES = 64  # decoded at once


def selected_originals(chain: Chain) -> Iterator[Original]:
    """Yield every kept picture and clip of a recipe's sources, in order; the stage select must be complete.

    Raises:
        RecipeError: the recipe has neither pictures nor clips. RunError: the stage is not complete.
    """
    names = [*chain.sources_of("image"), *chain.sources_of("video")]
    if not names:
        raise RecipeError("the recipe has no source of pictures or clips")
    for name in names:
        yield from _of_source(chain, name)


def _of_source(chain: Chain, name: str) -> Iterator[Original]:
    parts = chain.selected[name]
    if not parts:
        return
    reader = SampleReader(name, dict(parts[0].piece.settings), chain.limits)
    try:
        with chain.limits.video_decoder() as decoder:
            for part in parts:
                if chain.modality[name] == "image":
                    yield from _pictures(reader, part)
                else:
                    yield from _clips(reader, part, decoder)
    finally:
        reader.close()


def _pictures(reader: SampleReader, part: Selected) -> Iterator[Original]:
    rows = part.read()
    for key, image in zip(rows["key"], reader.images(part.piece, rows), strict=True):
        yield Original("image", key, Broken(image) if isinstance(image, SampleError) else iter([image[None]]))


def _clips(reader: SampleReader, part: Selected, decoder: VideoDecoder) -> Iterator[Original]:
    for row in part.read().iter_rows(named=True):
        yield Original("video", row["key"], _frames(reader, row, decoder))


def _frames(reader: SampleReader, row: Mapping[str, Any], decoder: VideoDecoder) -> Iterator[NDArray[np.uint8]]:
    with reader.source.store.local_copy(row["path"]) as path:
        for start in range(row["start_frame"], row["end_frame"], _FRAMES):
            yield decoder.frames(Path(path), range(start, min(start + _FRAMES, row["end_frame"])))
