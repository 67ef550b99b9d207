"""Draw what a benchmark asks with an exported model, into the layout its scorer expects.

A sample's seed comes from the run's seed, the prompt's name and the sample's number, so a part of a benchmark, a shard
of it or a resumed run gives the pictures the whole would. What was drawn already is left alone; a kill loses one batch.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError
from tokenmill.generate.export_folder import ExportFolder
from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.benchmarks.benchmark import Asked, Benchmark, LeftOut, Output, Prompts
from tokenmill.pipelines.benchmarks.folder import BenchmarkFolder, Drawn
from tokenmill.pipelines.write_video import mp4
from tokenmill.tokenize.documents import VisionSegment
from tokenmill.tokenize.vision import VisionTokenizer

log = logging.getLogger(__name__)

VERSION = 1
_LINE_EVERY_S = 30.0
_TOLD = 100  # of what was left out, in run.json


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What of a run determines its pictures; sides in pixels."""

    height: int
    width: int
    fps: float
    seconds: float
    top_k: int
    top_p: float
    temperature: float
    guidance: float
    negative: str
    seed: int
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What does not: `shard` (i, n) does every n-th prompt from the i-th on; `limit`: the first so many prompts."""

    device: str = "cpu"
    batch: int = 8
    shard: tuple[int, int] = (0, 1)
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A file that is not there yet."""

    asked: Asked
    text: str
    output: Output


class Drawing:
    """One benchmark, one model, one folder."""

    def __init__(
        self, name: str, benchmark: Benchmark, exported: ExportFolder, folder: BenchmarkFolder, settings: Settings
    ) -> None:
        from tokenmill.pipelines.tokens_settings import open_vision

        spec = exported.description.get("vision")
        if not spec:
            raise RecipeError(f"{exported.store.url}: was trained without pictures; it cannot draw")
        self._name, self._benchmark, self._exported, self._folder = name, benchmark, exported, folder
        self._settings, self._vision = settings, open_vision(spec)
        self._segment = _segment(settings, self._vision, is_video=benchmark.is_video)
        self.left_out: list[LeftOut] = []

    def run(self, prompts: Prompts, texts: Mapping[str, str], work: Work, *, prompt_file: str = "") -> dict[str, Any]:
        """Draw what is missing; `texts` replaces prompts by what a rewriter made of them."""
        self._begin(prompts, texts, prompt_file)
        for file, text in prompts.beside.items():
            self._folder.put(file, text.encode())
        first, step = work.shard
        mine = prompts.asked[: work.limit][first::step]
        whole = self._folder.whole()
        wanted = [
            _Wanted(asked=asked, text=texts.get(asked.prompt, asked.prompt), output=output)
            for asked in mine
            for output in asked.outputs
            if output.file not in whole
        ]
        self.left_out = list(prompts.left_out)
        if wanted:
            self._draw(wanted, work)
        counts = self._folder.count()
        reasons = Counter(one.reason for one in self.left_out)
        return {
            "benchmark": self._name,
            "folder": self._folder.store.url,
            "scored": f"{self._folder.store.url}/{self._benchmark.scored}".rstrip("/"),
            "prompts": len(mine),
            "rewritten": sum(asked.prompt in texts for asked in mine),
            "new_files": len({one.output.file for one in wanted}) - reasons["beyond_context"],
            **counts,
            "left_out": dict(sorted(reasons.items())),
        }

    def _begin(self, prompts: Prompts, texts: Mapping[str, str], prompt_file: str) -> None:
        rows = [
            {"name": asked.name, "prompt": asked.prompt, "text": texts.get(asked.prompt, asked.prompt), **asked.row,
             "files": [output.file for output in asked.outputs]}
            for asked in prompts.asked
        ]  # fmt: skip
        settings = asdict(self._settings)
        if not self._benchmark.is_video:
            del settings["fps"], settings["seconds"]
        identity = {
            "version": VERSION,
            "benchmark": self._name,
            "model": self._exported.fingerprint,
            "vision": self._vision.fingerprint,
            "settings": settings,
            "prompts": digest_of([(row["name"], row["text"], row["files"]) for row in rows]),
        }
        told = {
            "prompt_file": prompt_file,
            "model_path": self._exported.store.url,
            "step": self._exported.description.get("step"),
            "asked": {"prompts": len(rows), "files": sum(len(row["files"]) for row in rows)},
            "left_out": [asdict(one) for one in prompts.left_out[:_TOLD]],
            "num_left_out": len(prompts.left_out),
        }
        self._folder.begin(identity, rows, told)

    def _draw(self, wanted: Sequence[_Wanted], work: Work) -> None:
        from tokenmill.generate.model import load_model
        from tokenmill.generate.threads import steady_threads

        with self._exported.local() as path:
            loaded = load_model(path, dtype=self._settings.dtype, device=work.device)
        fitting = [one for one in wanted if self._fits(loaded, one)]
        began = told = time.monotonic()
        done = 0
        with steady_threads(loaded.model):
            for batch in _batches(fitting, work.batch):
                self._draw_batch(loaded, batch, work.batch)
                done += len(batch)
                if time.monotonic() - told > _LINE_EVERY_S:
                    told = time.monotonic()
                    rate = done / (told - began)
                    left_h = (len(fitting) - done) / rate / 3600
                    log.info("%s: %d of %d files, %.2f a second, %.1f h", self._name, done, len(fitting), rate, left_h)

    def _fits(self, loaded: Any, one: _Wanted) -> bool:
        """Say whether the context holds prompt and picture; a prompt that is too long is told once."""
        from tokenmill.generate.grammar import VisionGrammar
        from tokenmill.generate.prompts import drawing_prompt

        picture = self._segment
        behind = VisionGrammar(loaded.vocabulary, picture.h, picture.w, picture.t).num_ids
        needed = max(
            len(drawing_prompt(loaded.vocabulary, text, picture)) for text in (one.text, self._settings.negative)
        )
        if needed + behind <= loaded.model.config.max_position_embeddings:
            return True
        if len(drawing_prompt(loaded.vocabulary, "", picture)) + behind > loaded.model.config.max_position_embeddings:
            told = f"{behind} ids of a picture or clip of this size; the model's context holds"
            raise RecipeError(f"{told} {loaded.model.config.max_position_embeddings}")
        self.left_out.append(LeftOut(where=one.output.file, reason="beyond_context"))
        return False

    def _draw_batch(self, loaded: Any, batch: Sequence[_Wanted], batch_size: int) -> None:
        drawn = [
            (one, sample, seed_of(self._settings.seed, one.asked.name, sample))
            for one in batch
            for sample in one.output.samples
        ]
        documents = self._documents(
            loaded, [one.text for one, _, _ in drawn], [seed for _, _, seed in drawn], batch_size
        )
        frames: dict[str, list[NDArray[np.uint8]]] = {}
        rows: list[Drawn] = []
        for (one, sample, seed), ids in zip(drawn, documents, strict=True):
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
        told = {one.output.file: self._told(one) for one in batch}
        self._folder.publish({file: self._encoded(some, told[file]) for file, some in frames.items()}, rows)

    def _documents(
        self, loaded: Any, texts: Sequence[str], seeds: Sequence[int], batch_size: int
    ) -> list[NDArray[np.int32]]:
        from tokenmill.generate.sample import generate_vision

        picture, settings = self._segment, self._settings
        return generate_vision(
            loaded.model, loaded.vocabulary, texts, picture.h, picture.w, picture.t, fps=picture.fps,
            seconds=picture.seconds, top_k=settings.top_k, temperature=settings.temperature,
            guidance=settings.guidance, negative=settings.negative, seed=seeds, batch_size=batch_size,
            num_codes=self._vision.codebook_size,
        )  # fmt: skip

    def _pixels(self, loaded: Any, ids: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Return the frames (T, H, W, 3) of a document."""
        from tokenmill.generate.pictures import decode_ids

        return np.stack(decode_ids(ids, loaded.vocabulary, self._vision))

    def _told(self, one: _Wanted) -> dict[str, str]:
        """What a picture says of itself."""
        seeds = [str(seed_of(self._settings.seed, one.asked.name, sample)) for sample in one.output.samples]
        settings = ", ".join(f"{key} {value}" for key, value in asdict(self._settings).items() if value != "")
        told = {"prompt": one.text, "seed": " ".join(seeds), "settings": settings}
        return told | ({"rewritten from": one.asked.prompt} if one.text != one.asked.prompt else {})

    def _encoded(self, samples: Sequence[NDArray[np.uint8]], told: dict[str, str]) -> bytes:
        from tokenmill.generate.pictures import save_png

        if self._segment.fps is not None:
            return mp4(samples[0], self._segment.fps)
        buffer = BytesIO()
        save_png(buffer, grid_of([sample[0] for sample in samples]), told)
        return buffer.getvalue()


def seed_of(seed: int, name: str, sample: int) -> int:
    """Return the seed of a sample (48 bits): of these three alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}\0{sample}".encode()).digest()[:6], "big")


def grid_of(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Put pictures (H, W, 3) of one size two in a row; a missing last one is black."""
    if len(pictures) == 1:
        return pictures[0]
    full = [*pictures, *[np.zeros_like(pictures[0])] * (len(pictures) % 2)]
    rows = [np.concatenate(full[first : first + 2], axis=1) for first in range(0, len(full), 2)]
    return np.concatenate(rows)


def open_export(url: str, storage: Mapping[str, Any]) -> ExportFolder:
    """Open the model of a folder; raises StorageError where there is none."""
    return ExportFolder(open_store(url, storage), "")


def _segment(settings: Settings, vision: VisionTokenizer, *, is_video: bool) -> VisionSegment:
    """Return the grid in codes; a clip has whole windows, at least one."""
    factor, window = vision.spatial_factor, vision.temporal_factor
    for side, pixels in (("--height", settings.height), ("--width", settings.width)):
        if pixels < factor or pixels % factor:
            raise RecipeError(f"{side} {pixels}: has to be a multiple of the tokenizer's {factor} pixels a code")
    rows, columns = settings.height // factor, settings.width // factor
    if not is_video:
        return VisionSegment(1, rows, columns, 0, None, None)
    steps = max(1, round(settings.seconds * settings.fps / window))
    return VisionSegment(steps, rows, columns, 0, settings.fps, round(steps * window / settings.fps, 3))


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
