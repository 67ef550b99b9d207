"""Draw what a benchmark asks with an exported model, into the layout its scorer expects.

A sample's seed comes from the run's seed, the prompt's name and the sample's number, so a part of a benchmark, a shard
of it or a resumed run gives the pictures the whole would. What was drawn already is left alone; a kill loses one batch
(`Work.batch`, 8 samples), and what it costs to be sure of that is a table a batch.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenmill.pipelines.write_video import mp4

from tokenmill.errors import RecipeError
from tokenmill.generate.drawing import Drawing
from tokenmill.generate.export_folder import ExportFolder
from tokenmill.generate.grammar import VisionGrammar
from tokenmill.generate.model import ExportedModel
from tokenmill.generate.sampling import Sampling
from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.benchmarks.benchmark import Asked, Benchmark, Output, Prompts
from tokenmill.pipelines.benchmarks.drawn_files import png, seed_of
from tokenmill.pipelines.benchmarks.folder import BenchmarkFolder, Drawn
from tokenmill.pipelines.tokens_settings import open_vision
from tokenmill.tokenize.vision import VisionTokenizer

log = logging.getLogger(__name__)

VERSION = 1
_LINE_EVERY_S = 30.0
_TOLD = 100  # of what was left out, in run.json


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
class Work:
    """What does not: `shard` (i, n) does every n-th prompt from the i-th on; `limit`: the first so many prompts."""

    device: str = "cpu"
    batch: int = 8
    shard: tuple[int, int] = (0, 1)
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A file that is not there yet, and what the model is given for it."""

    asked: Asked
    text: str
    output: Output


class BenchmarkDrawing:
    """One benchmark, one model, one folder."""

    def __init__(
        self, name: str, benchmark: Benchmark, model: str, folder: BenchmarkFolder, settings: Settings, work: Work,
        storage: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._exported = ExportFolder(open_store(model, storage or {}), "")
        self._name, self._benchmark, self._folder, self._work = name, benchmark, folder, work
        self._settings, self._vision = settings, _vision(self._exported, work.device)
        self._template = _template(settings, self._vision, is_video=benchmark.is_video)
        self._told = settings.told(is_video=benchmark.is_video)

    def run(self, prompts: Prompts, texts: Mapping[str, str], *, prompt_file: str = "") -> dict[str, Any]:
        """Draw what is missing; `texts` replaces prompts by what a rewriter made of them.

        Raises:
            RecipeError: the folder holds something else, or the context not even a picture.
        """
        self._begin(prompts, texts, prompt_file)
        for file, text in prompts.beside.items():
            self._folder.put(file, text.encode())
        first, step = self._work.shard
        mine = prompts.asked[: self._work.limit][first::step]
        whole = self._folder.whole()
        wanted = [
            _Wanted(asked=asked, text=texts.get(asked.prompt, asked.prompt), output=output)
            for asked in mine
            for output in asked.outputs
            if output.file not in whole
        ]
        num_long = self._draw(wanted) if wanted else 0
        reasons = Counter(one.reason for one in prompts.left_out) + Counter({"beyond_context": num_long})
        return {
            "benchmark": self._name,
            "folder": self._folder.store.url,
            "scored": f"{self._folder.store.url}/{self._benchmark.scored}".rstrip("/"),
            "prompts": len(mine),
            "rewritten": sum(asked.prompt in texts for asked in mine),
            "new_files": len(wanted) - num_long,
            **self._folder.count(),
            "left_out": dict(sorted(reasons.items())),
        }

    def _begin(self, prompts: Prompts, texts: Mapping[str, str], prompt_file: str) -> None:
        rows = [_row(asked, texts.get(asked.prompt, asked.prompt)) for asked in prompts.asked]
        files = Counter(file for row in rows for file in row["files"])
        if twice := [file for file, number in files.items() if number > 1]:
            raise RecipeError(f"{prompt_file}: two prompts are drawn into one file, {twice[0]}")
        identity = {
            "version": VERSION,
            "benchmark": self._name,
            "model": self._exported.fingerprint,
            "vision": self._vision.fingerprint,
            "settings": self._told,
            "prompts": digest_of([(row["name"], row["text"], row["files"]) for row in rows]),
        }
        told = {
            "prompt_file": prompt_file,
            "model_path": self._exported.store.url,
            "step": self._exported.description.get("step"),
            "asked": {"prompts": len(rows), "files": len(files)},
            "left_out": [asdict(one) for one in prompts.left_out[:_TOLD]],
            "num_left_out": len(prompts.left_out),
        }
        self._folder.begin(identity, rows, told)

    def _draw(self, wanted: Sequence[_Wanted]) -> int:
        """Draw files; returns how many were left out because the context does not hold them."""
        from tokenmill.generate.model import load_model

        with self._exported.local() as path:
            loaded = load_model(path, dtype=self._settings.dtype, device=self._work.device)
        most = self._room(loaded)
        fitting = [one for one in wanted if len(loaded.vocabulary.text.encode(one.text)) <= most]
        began = told = time.monotonic()
        done = 0
        for batch in _batches(fitting, self._work.batch):
            self._draw_batch(loaded, batch)
            done += len(batch)
            if time.monotonic() - told > _LINE_EVERY_S:
                told = time.monotonic()
                rate = done / (told - began)
                left_h = (len(fitting) - done) / rate / 3600
                log.info("%s: %d of %d files, %.2f a second, %.1f h", self._name, done, len(fitting), rate, left_h)
        return len(wanted) - len(fitting)

    def _room(self, loaded: ExportedModel) -> int:
        """Return how many ids a prompt may have; raises RecipeError where not even an empty one fits."""
        template, context = self._template, int(loaded.model.config.max_position_embeddings)
        grammar = VisionGrammar(loaded.vocabulary, template.height, template.width, template.frames)
        room = context - grammar.num_ids - len(template.ids_before(grammar, ""))
        if room < len(loaded.vocabulary.text.encode(template.negative)):
            told = f"{grammar.num_ids} ids of a picture or clip of this size, and the negative prompt"
            raise RecipeError(f"{told}: the model's context holds {context}")
        return room

    def _draw_batch(self, loaded: ExportedModel, batch: Sequence[_Wanted]) -> None:
        """Draw, decode and publish the samples of some files."""
        from tokenmill.generate.sample import draw_documents

        samples = [(one, sample, self._seed(one, sample)) for one in batch for sample in one.output.samples]
        documents = draw_documents(
            loaded, [replace(self._template, prompt=one.text, seed=seed) for one, _, seed in samples],
            self._settings.sampling, batch_size=self._work.batch, num_codes=self._vision.codebook_size,
        )  # fmt: skip
        frames: dict[str, list[NDArray[np.uint8]]] = {}
        rows = []
        for (one, sample, seed), ids in zip(samples, documents, strict=True):
            frames.setdefault(one.output.file, []).append(self._pixels(loaded, ids))
            rows.append(
                Drawn(
                    file=one.output.file, name=one.asked.name, sample=sample, prompt=one.asked.prompt, text=one.text,
                    seed=seed, ids=ids,
                )
            )  # fmt: skip
        for one in batch:
            for file, text in one.asked.beside.items():
                self._folder.put(file, text.encode())
        self._folder.publish({one.output.file: self._encoded(one, frames[one.output.file]) for one in batch}, rows)

    def _seed(self, one: _Wanted, sample: int) -> int:
        return seed_of(self._settings.seed, one.asked.name, sample)

    def _pixels(self, loaded: ExportedModel, ids: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Return the frames (T, H, W, 3) of a document."""
        from tokenmill.generate.pictures import decode_ids

        return np.stack(decode_ids(ids, loaded.vocabulary, self._vision))

    def _encoded(self, one: _Wanted, samples: Sequence[NDArray[np.uint8]]) -> bytes:
        if self._template.fps is not None:
            return mp4(samples[0], self._template.fps)
        told = {
            "prompt": one.text,
            "seed": " ".join(str(self._seed(one, sample)) for sample in one.output.samples),
            "settings": ", ".join(f"{key} {value}" for key, value in self._told.items() if value != ""),
            **({"rewritten from": one.asked.prompt} if one.text != one.asked.prompt else {}),
        }
        return png([sample[0] for sample in samples], told)


def _row(asked: Asked, text: str) -> dict[str, Any]:
    files = [output.file for output in asked.outputs]
    return {"name": asked.name, "prompt": asked.prompt, "text": text, **asked.row, "files": files}


def _vision(exported: ExportFolder, device: str) -> VisionTokenizer:
    """Open the tokenizer by the export's own words, on our device."""
    spec = exported.description.get("vision")
    if not spec:
        raise RecipeError(f"{exported.store.url}: was trained without pictures; it cannot draw")
    return open_vision({**spec, "device": device} if device != "cpu" or "device" in spec else spec)


def _template(settings: Settings, vision: VisionTokenizer, *, is_video: bool) -> Drawing:
    """Return what every sample has in common; a clip has whole windows, at least one."""
    factor, window = vision.spatial_factor, vision.temporal_factor
    for side, pixels in (("--height", settings.height), ("--width", settings.width)):
        if pixels < factor or pixels % factor:
            raise RecipeError(f"{side} {pixels}: has to be a multiple of the tokenizer's {factor} pixels a code")
    rows, columns = settings.height // factor, settings.width // factor
    if not is_video:
        return Drawing(prompt="", height=rows, width=columns, negative=settings.negative)
    if not (0 < settings.fps < float("inf") and 0 < settings.seconds < float("inf")):
        raise RecipeError(f"--fps {settings.fps:g}, --seconds {settings.seconds:g}: both have to be above 0")
    steps = max(1, round(settings.seconds * settings.fps / window))
    return Drawing(
        prompt="", height=rows, width=columns, frames=steps, fps=settings.fps,
        seconds=round(steps * window / settings.fps, 3), negative=settings.negative,
    )  # fmt: skip


def _batches(wanted: Sequence[_Wanted], size: int) -> Iterator[list[_Wanted]]:
    """Give files whose samples fill a batch; a grid of more samples than that is a batch of its own."""
    batch: list[_Wanted] = []
    count = 0
    for one in wanted:
        if batch and count + len(one.output.samples) > size:
            yield batch
            batch, count = [], 0
        batch.append(one)
        count += len(one.output.samples)
    if batch:
        yield batch
