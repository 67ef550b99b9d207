"""An open model that draws the files of a benchmark, a batch at a time: ids, pixels, and the bytes of the files.

A file is a sample or a grid of several, so a batch is cut between files: of 8 at a time a grid of four is half a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tokenmill.errors import RecipeError
from tokenmill.generate.canvas import latent_frames, sized
from tokenmill.generate.drawing import Drawing
from tokenmill.generate.drawn_files import Drawn
from tokenmill.generate.grammar import VisionGrammar
from tokenmill.generate.opened_model import OpenedModel
from tokenmill.generate.pictures import decode_ids
from tokenmill.generate.sampling import Sampling
from tokenmill.pipelines.benchmarks.benchmark import Asked, Output
from tokenmill.pipelines.benchmarks.folder import BenchmarkSample
from tokenmill.pipelines.benchmarks.samples import grid_of, seed_of
from tokenmill.tokenize.vision import VisionTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What of a run determines its pictures; sides in pixels, `fps` and `seconds` of clips alone."""

    height: int
    width: int
    fps: float
    seconds: float
    sampling: Sampling
    negative: str
    seed: int
    dtype: str

    def told(self, *, is_video: bool) -> dict[str, Any]:
        """Return all of them in one mapping."""
        told = asdict(self)
        told |= told.pop("sampling")
        return {key: value for key, value in told.items() if is_video or key not in ("fps", "seconds")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A file that is not there yet, and what the model is given for it."""

    asked: Asked
    text: str
    output: Output


class Brush:
    """An open model, and what all samples of a run have in common."""

    def __init__(self, opened: OpenedModel, settings: Settings, *, is_video: bool, batch_size: int) -> None:
        self._opened, self._settings, self._batch_size = opened, settings, batch_size
        self._told = settings.told(is_video=is_video)
        self._template = _template(settings, opened.vision, is_video=is_video)

    def room(self) -> int:
        """Return how many ids a prompt may have; raises RecipeError where not even an empty one fits."""
        template, vocabulary = self._template, self._opened.model.vocabulary
        grammar = VisionGrammar(vocabulary, template.height, template.width, template.frames)
        room = self._opened.context - grammar.num_ids - len(template.ids_before(grammar, ""))
        if room < len(vocabulary.text.encode(template.negative)):
            told = f"{grammar.num_ids} ids of a picture or clip of this size, and the negative prompt"
            raise RecipeError(f"{told}: the model's context holds {self._opened.context}")
        return room

    def draw(self, batch: Sequence[Wanted]) -> tuple[dict[str, bytes], list[BenchmarkSample]]:
        """Draw, decode and encode the samples of some files."""
        from tokenmill.generate.sample import draw_documents

        asked = [(one, sample, self._seed(one, sample)) for one in batch for sample in one.output.samples]
        documents = draw_documents(
            self._opened.model, [replace(self._template, prompt=one.text, seed=seed) for one, _, seed in asked],
            self._settings.sampling, batch_size=self._batch_size, num_codes=self._opened.vision.codebook_size,
        )  # fmt: skip
        samples: dict[str, list[BenchmarkSample]] = {}
        for (one, sample, seed), ids in zip(asked, documents, strict=True):
            samples.setdefault(one.output.file, []).append(
                BenchmarkSample(
                    file=one.output.file, name=one.asked.name, sample=sample, prompt=one.asked.prompt, text=one.text,
                    seed=seed, ids=ids,
                )
            )  # fmt: skip
        return (
            {file: self._encoded(of) for file, of in samples.items()},
            [one for of in samples.values() for one in of],
        )

    def _seed(self, one: Wanted, sample: int) -> int:
        return seed_of(self._settings.seed, one.asked.name, sample)

    def _encoded(self, samples: Sequence[BenchmarkSample]) -> bytes:
        """Return the file of a sample, or of several as a grid, with what there is to tell in its metadata."""
        first = samples[0]
        seeds = [one.seed for one in samples]
        about = {**self._told, "prompt": first.text, "seed": seeds[0] if len(seeds) == 1 else seeds}
        if first.text != first.prompt:
            about["rewritten_from"] = first.prompt
        frames = [np.stack(decode_ids(one.ids, self._opened.model.vocabulary, self._opened.vision)) for one in samples]
        shown = frames[0] if self._template.fps is not None else grid_of([one[0] for one in frames])[None]
        return Drawn(about=about, ids=first.ids, frames=shown, fps=self._template.fps).data()


def _template(settings: Settings, vision: VisionTokenizer, *, is_video: bool) -> Drawing:
    """Return what every sample has in common; a clip has whole windows, at least one."""
    window = vision.temporal_factor
    rows, columns = sized(settings.height, settings.width, vision.spatial_factor)
    if not is_video:
        return Drawing(prompt="", height=rows, width=columns, negative=settings.negative)
    steps = latent_frames(window, frames=None, seconds=settings.seconds, fps=settings.fps)
    return Drawing(
        prompt="", height=rows, width=columns, frames=steps, fps=settings.fps,
        seconds=round(steps * window / settings.fps, 3), negative=settings.negative,
    )  # fmt: skip
