"""One slice of samples as one token archive: read, encode, write; holds the vision tokenizer between slices."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tokenmill.errors import RecipeError, SampleError
from tokenmill.manifests.archive import ArchiveWriter
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.archive_json import finite
from tokenmill.pipelines.decode_video import VideoDecoder
from tokenmill.pipelines.decoding import DecodeLimits, SampleReader
from tokenmill.pipelines.jobs import Job, JobResult, StagedArchive, publish
from tokenmill.pipelines.selected import Selected
from tokenmill.pipelines.tokens_archive import TokenSample, archive_output, archive_row, index_columns
from tokenmill.pipelines.tokens_clip import REFUSALS, ClipEncoder, TokenArea
from tokenmill.pipelines.tokens_images import ImageEncoder
from tokenmill.pipelines.tokens_settings import TokenSettings, open_vision
from tokenmill.pipelines.tokens_words import Words, chosen_words, with_vision
from tokenmill.tokenize.segments import TextSegment, VisionSegment
from tokenmill.tokenize.vision import VisionTokenizer
from tokenmill.tokenize.vocabulary import Vocabulary, build_vocabulary


class TokenWorker:
    """Decodes, encodes and writes one slice."""

    def __init__(
        self,
        source: str,
        source_settings: Mapping[str, Any],
        settings: TokenSettings,
        limits: DecodeLimits,
        captions: StageDir | None,
    ) -> None:
        self._settings = settings
        self._reader = SampleReader(source, source_settings, limits)
        self._captions = captions
        self._vocabulary: Vocabulary = build_vocabulary(settings.vocabulary)
        self._vision: VisionTokenizer | None = None
        self._seconds: dict[str, float] = {}
        self._fill = self._filler()

    def _filler(self) -> Callable[[Selected, pl.DataFrame, Sequence[TokenSample]], None]:
        """Return what fills in samples of this modality; loads the vision tokenizer where there are pixels."""
        settings = self._settings
        if settings.modality == "text":
            return self._read_texts
        vision = self._vision = open_vision(settings.vision)
        known = self._vocabulary.codebook_size
        if vision.codebook_size > known:
            raise RecipeError(f"the vision tokenizer has {vision.codebook_size} codes, the vocabulary {known}")
        area = TokenArea(
            min_area=settings.min_area,
            max_area=settings.max_area,
            max_aspect=settings.max_aspect,
            multiple=vision.spatial_factor,
        )
        if settings.clip is not None:
            self._clips = ClipEncoder(vision, settings.clip, area, self._vocabulary)
            return self._encode_clips
        self._images = ImageEncoder(vision, area)
        return self._encode_images

    def close(self) -> None:
        self._reader.close()

    def __call__(self, job: Job) -> JobResult:
        self._seconds = defaultdict(float)
        part: Selected = job.unit.payload["part"]
        rows = part.read()
        words: dict[str, Words] = {}
        if self._captions is not None:
            words = chosen_words(self._captions.read_rows(job.unit.payload["captions"]), self._shown)
            rows = rows.filter(pl.col("key").is_in(list(words)))
        samples = [TokenSample(row=row, words=words.get(row["key"], Words())) for row in rows.iter_rows(named=True)]
        self._fill(part, rows, samples)
        commit = self._write(job, part.carried(), samples)
        return JobResult(commits=(commit,), seconds=dict(self._seconds))

    def _read_texts(self, part: Selected, rows: pl.DataFrame, samples: Sequence[TokenSample]) -> None:
        for sample, text in zip(samples, self._reader.texts(part.piece, rows), strict=True):
            if isinstance(text, SampleError):
                sample.error = text
                continue
            ids = np.asarray(self._vocabulary.text.encode(self._shown(text)), dtype=np.uint32)
            sample.segments, sample.text_ids = [TextSegment(0, len(ids), "body")], ids

    def _encode_images(self, part: Selected, rows: pl.DataFrame, samples: Sequence[TokenSample]) -> None:
        self._images.seconds = self._seconds
        self._images(self._reader, part.piece, rows, samples)
        for sample in samples:
            texts, sample.text_ids = sample.words.segments(self._vocabulary.text.encode)
            for codes in sample.codes:
                t, h, w = codes.shape
                sample.segments = with_vision(texts, VisionSegment(t, h, w, 0))

    def _encode_clips(self, part: Selected, rows: pl.DataFrame, samples: Sequence[TokenSample]) -> None:
        """Decode and encode clips in the decoding threads; one has the model at a time."""
        self._clips.seconds = self._seconds
        by_key = {sample.row["key"]: sample for sample in samples}
        for sample in samples:
            sample.segments, sample.text_ids = sample.words.segments(self._vocabulary.text.encode)

        def encode(decoder: VideoDecoder, path: Path, row: Mapping[str, Any]) -> None:
            sample = by_key[row["key"]]
            try:
                codes, sample.clip = self._clips(decoder, path, row, sample.segments)
            except SampleError as error:
                if error.reason not in REFUSALS:
                    raise
                sample.error = error  # beside the budget of failures: any number in a row may be too long
                return
            sample.codes, sample.segments = [codes], with_vision(sample.segments, sample.clip.segment)

        for sample, result in zip(samples, self._reader.clips(rows, encode), strict=True):
            if isinstance(result, SampleError):
                sample.error = result

    def _shown(self, text: str) -> str:
        """Return a text as the archive may hold it."""
        return text if self._settings.mask is None else self._settings.mask(text)

    def _write(self, job: Job, carried: Sequence[str], samples: Sequence[TokenSample]) -> Any:
        started = time.perf_counter()
        (target,) = job.targets
        modality, codebook_size = self._settings.modality, self._vision.codebook_size if self._vision else 0
        with target.folder.store.staging(target.folder.path) as path:
            with ArchiveWriter(path) as writer:
                rows = [
                    archive_row(writer, sample, self._document(sample, carried), modality, codebook_size)
                    for sample in samples
                ]
            frame = pl.DataFrame(rows, schema=index_columns(modality), orient="row")
            archive = StagedArchive(path=path, bytes=writer.bytes, sha256=writer.sha256)
            commit = publish(job, target, archive_output(frame, samples, archive))
        self._seconds["write"] += time.perf_counter() - started
        return commit

    def _document(self, sample: TokenSample, carried: Sequence[str]) -> dict[str, Any]:
        """Return what the sample's JSON says beside its segments."""
        described = {"source_caption": sample.row["caption"], "metadata": finite(json.loads(sample.row["metadata"]))}
        return {
            **sample.words.described,
            "source": self._reader.name,
            "key": sample.row["key"],
            "scores": {name: finite(sample.row[name]) for name in carried},
            "licence": self._settings.licence,
            **(described if self._settings.mask is None else self._settings.mask.in_json(described)),
        }
