"""What tables of prompts became, for the report: of each job the first prompts with some of their samples."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from itertools import groupby, islice

import numpy as np
from PIL import Image

from tokenmill.errors import RunError
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.pipelines.drawing_jobs import read_job
from tokenmill.pipelines.drawn import DrawnSample, drawn_samples
from tokenmill.pipelines.report_html import Markup, element, note
from tokenmill.pipelines.report_pictures import Album, tile
from tokenmill.recipe import Recipe

_PROMPTS, _SAMPLES = 6, 4  # shown of a job
_PIXELS_A_CODE = 8  # only for the room the player takes before it has loaded


def jobs_shown(recipe: Recipe, album: Album) -> list[Markup]:
    """Show some of what each job of the recipe drew; one that is not complete is named."""
    shown: list[Markup] = []
    for name in recipe.generate.jobs:
        try:
            drawn = read_job(recipe, name)
        except RunError:
            shown.append(note(f"Job {name} is not complete yet."))
            continue
        cards = [_card(list(islice(samples, _SAMPLES)), album) for samples in islice(_by_prompt(drawn), _PROMPTS)]
        shown += [element("p", _told(name, drawn)), element("div", cards, class_="cards middle")]
    return shown


def _by_prompt(drawn: Snapshot) -> Iterator[Iterator[DrawnSample]]:
    return (samples for _, samples in groupby(drawn_samples(drawn), key=lambda sample: sample.number))


def _told(name: str, drawn: Snapshot) -> str:
    counts = drawn.counts
    text = f"Job {name}: {counts.out:,} samples of {counts.kept:,} prompts"
    if counts.failed:
        text += f"; not drawn: {', '.join(f'{reason} {number:,}' for reason, number in sorted(counts.failed.items()))}"
    return f"{text}."


def _card(samples: list[DrawnSample], album: Album) -> Markup:
    tiles = [_tile(sample, album) for sample in samples]
    title = element("h4", f"“{samples[0].prompt}”")
    return element("article", title, element("div", tiles, class_="sheet"), class_="card")


def _tile(sample: DrawnSample, album: Album) -> Markup:
    alt, seed = f"drawn from the prompt: {sample.prompt}", f"seed {sample.seed}"
    if sample.extension == "mp4":
        height, width = (side * _PIXELS_A_CODE for side in sample.grid[1:])
        return tile(album.film(sample.data, width, height, alt), seed)
    pixels = np.asarray(Image.open(BytesIO(sample.data)).convert("RGB"))
    return tile(album.picture(pixels, alt, side=256), seed)
