"""Draw what a benchmark asks with an exported model, into the layout its scorer expects.

A sample's seed comes from the run's seed, the prompt's name and the sample's number, so a part of a benchmark, a shard
of it or a resumed run gives the pictures the whole would. What was drawn already is left alone; a kill loses one batch
(`Work.batch_size`, 8 samples), and what it costs to be sure of that is a table a batch.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.generate.opened_model import find_model, open_model
from tokenmill.manifests.identity import digest_of
from tokenmill.pipelines.benchmarks.benchmark import Asked, Benchmark, Prompts
from tokenmill.pipelines.benchmarks.brush import Brush, Settings, Wanted
from tokenmill.pipelines.benchmarks.folder import BenchmarkFolder

log = logging.getLogger(__name__)

VERSION = 1
_LINE_EVERY_S = 30.0
_TOLD = 100  # of what was left out, in run.json


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What does not: `shard` (i, n) does every n-th prompt from the i-th on; `limit`: the first so many prompts."""

    device: str = "cpu"
    batch_size: int = 8
    shard: tuple[int, int] = (0, 1)
    limit: int | None = None


class BenchmarkDrawing:
    """One benchmark, one model, one folder.

    Raises RecipeError where no model is at the place.
    """

    def __init__(
        self, name: str, benchmark: Benchmark, model: str, folder: BenchmarkFolder, settings: Settings, work: Work,
        storage: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._place, self._storage = model, storage
        self._found = find_model(model, storage)
        self._name, self._benchmark, self._folder = name, benchmark, folder
        self._settings, self._work = settings, work
        self._told = settings.told(is_video=benchmark.is_video)

    def run(self, prompts: Prompts, texts: Mapping[str, str], *, prompt_file: str = "") -> dict[str, Any]:
        """Draw what is missing; `texts` replaces prompts by what a rewriter made of them.

        Raises:
            RecipeError: the folder holds something else, the model cannot draw, or not pictures of this size.
        """
        self._begin(prompts, texts, prompt_file)
        for file, text in prompts.beside.items():
            self._folder.put(file, text.encode())
        first, step = self._work.shard
        mine = prompts.asked[: self._work.limit][first::step]
        whole = self._folder.whole()
        wanted = [
            Wanted(asked=asked, text=texts.get(asked.prompt, asked.prompt), output=output)
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
            "model": self._found.fingerprint,
            "settings": self._told,
            "prompts": digest_of([(row["name"], row["text"], row["files"]) for row in rows]),
        }
        told = {
            "prompt_file": prompt_file,
            "model_path": self._place,
            "asked": {"prompts": len(rows), "files": len(files)},
            "left_out": [asdict(one) for one in prompts.left_out[:_TOLD]],
            "num_left_out": len(prompts.left_out),
        }
        self._folder.begin(identity, rows, told)

    def _draw(self, wanted: Sequence[Wanted]) -> int:
        """Draw files; returns how many were left out because the context does not hold them."""
        opened = open_model(self._place, storage=self._storage, device=self._work.device, dtype=self._settings.dtype)
        self._folder.tell(vision=opened.vision.fingerprint, vocabulary=opened.model.vocabulary.fingerprint)
        brush = Brush(opened, self._settings, is_video=self._benchmark.is_video, batch_size=self._work.batch_size)
        most = brush.room()
        fitting = [one for one in wanted if len(opened.model.vocabulary.text.encode(one.text)) <= most]
        began = told = time.monotonic()
        done = 0
        for batch in _batches(fitting, self._work.batch_size):
            files, samples = brush.draw(batch)
            for file, text in {file: text for one in batch for file, text in one.asked.beside.items()}.items():
                self._folder.put(file, text.encode())
            self._folder.publish(files, samples)
            done += len(batch)
            if time.monotonic() - told > _LINE_EVERY_S:
                told = time.monotonic()
                rate = done / (told - began)
                left_h = (len(fitting) - done) / rate / 3600
                log.info("%s: %d of %d files, %.2f a second, %.1f h", self._name, done, len(fitting), rate, left_h)
        return len(wanted) - len(fitting)


def _row(asked: Asked, text: str) -> dict[str, Any]:
    files = [output.file for output in asked.outputs]
    return {"name": asked.name, "prompt": asked.prompt, "text": text, **asked.row, "files": files}


def _batches(wanted: Sequence[Wanted], size: int) -> Iterator[list[Wanted]]:
    """Give files whose samples fill a batch; a grid of more samples than that is a batch of its own."""
    batch: list[Wanted] = []
    count = 0
    for one in wanted:
        if batch and count + len(one.output.samples) > size:
            yield batch
            batch, count = [], 0
        batch.append(one)
        count += len(one.output.samples)
    if batch:
        yield batch
