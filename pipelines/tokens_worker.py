"""One slice of samples as one token archive; holds the vision tokenizer between slices.

Reading, decoding and resizing, encoding and writing go on side by side: samples come out of `_fill` in the order of the
source as soon as their codes are there, and are written at once.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import RecipeError, RunError, SampleError, TokenmillError
from tokenmill.manifests.archive import ArchiveWriter
from tokenmill.manifests.records import Commit
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.archive_json import finite
from tokenmill.pipelines.decode_video import VideoDecoder
from tokenmill.pipelines.decoding import DecodeLimits, SampleReader
from tokenmill.pipelines.jobs import Job, JobResult, StagedArchive, publish
from tokenmill.pipelines.selected import Selected
from tokenmill.pipelines.tokens_archive import TokenSample, archive_output, archive_row, index_columns
from tokenmill.pipelines.tokens_before import Coded, Earlier, codes_before, pages_before
from tokenmill.pipelines.tokens_clip import REFUSALS, ClipEncoder, TokenArea
from tokenmill.pipelines.tokens_documents import DocumentEncoder
from tokenmill.pipelines.tokens_images import ImageEncoder
from tokenmill.pipelines.tokens_model import SharedVision
from tokenmill.pipelines.tokens_settings import TokenSettings, open_exact_vision, open_vision
from tokenmill.pipelines.tokens_words import Words, chosen_words, with_vision
from tokenmill.tokenize.segments import Segment, TextSegment, VisionSegment
from tokenmill.tokenize.vocabulary import Vocabulary, build_vocabulary

LEFT_OUT = "pictures of pages left out"
TAKEN_OVER, COMPARED = "samples with codes taken over", "codes compared with those of float32"
CHANGED = "codes that float32 changes"
Fill = Callable[[Selected, pl.DataFrame, Sequence[TokenSample]], Iterator[TokenSample]]


class TokenWorker:
    """Decodes, encodes and writes one slice; `cpus` is what a model on CPUs may use of them."""

    def __init__(
        self,
        source: str,
        source_settings: Mapping[str, Any],
        settings: TokenSettings,
        limits: DecodeLimits,
        captions: StageDir | None,
        cpus: int = 1,
    ) -> None:
        self._settings = settings
        self._reader = SampleReader(source, source_settings, limits)
        self._captions = captions
        self._vocabulary: Vocabulary = build_vocabulary(settings.vocabulary)
        self._shared: SharedVision | None = None
        self._seconds: dict[str, float] = {}
        self._notes: Counter[str] = Counter()
        self._known: Mapping[str, Coded] = {}
        self._is_compared = False
        self._fill = self._filler(limits, cpus)

    def _filler(self, limits: DecodeLimits, cpus: int) -> Fill:
        """Return what fills in samples of this modality; loads the vision tokenizer where there are pixels."""
        settings = self._settings
        if settings.modality == "text":
            return self._read_texts
        vision, known = open_vision(settings.vision), self._vocabulary.codebook_size
        if vision.codebook_size > known:
            raise RecipeError(f"the vision tokenizer has {vision.codebook_size} codes, the vocabulary {known}")
        shared = self._shared = SharedVision(vision, cpus)
        area = TokenArea(
            min_area=settings.min_area,
            max_area=settings.max_area,
            max_aspect=settings.max_aspect,
            multiple=vision.spatial_factor,
        )
        if settings.clip is not None:
            self._clips = ClipEncoder(shared, settings.clip, area, self._vocabulary)
            return self._encode_clips
        self._images = ImageEncoder(shared, area, max_pixels=limits.max_pixels)
        if settings.page is not None:
            self._documents = DocumentEncoder(self._images, settings.page, self._ids, self._shown)
            return self._encode_documents
        return self._encode_images

    def close(self) -> None:
        self._reader.close()
        if self._shared is not None:
            self._shared.close()

    def __call__(self, job: Job) -> JobResult:
        self._seconds, started = defaultdict(float), time.perf_counter()
        part: Selected = job.unit.payload["part"]
        rows = part.read()
        words: dict[str, Words] = {}
        if self._captions is not None:
            words = chosen_words(self._captions.read_rows(job.unit.payload["captions"]), self._shown)
            rows = rows.filter(pl.col("key").is_in(list(words)))
        samples = [TokenSample(row=row, words=words.get(row["key"], Words())) for row in rows.iter_rows(named=True)]
        self._notes = Counter()
        self._known = {}
        if self._shared is not None:
            self._look_back(job.unit.payload["earlier"], rows, self._shared.vision.codebook_size)
            self._seconds["read"] += time.perf_counter() - started
        commit = self._write(job, part.carried(), self._fill(part, rows, samples))
        if self._shared is not None:
            self._seconds["model"] += self._shared.taken_s()
            self._compare(self._shared)
        return JobResult(commits=(commit,), seconds=dict(self._seconds), notes=dict(self._notes))

    def _look_back(self, earlier: Earlier, rows: pl.DataFrame, codebook_size: int) -> None:
        """Find the codes that exist already."""
        if self._settings.page is not None:
            self._documents.known = pages_before(earlier, rows, codebook_size)
        else:
            self._known = codes_before(earlier, rows, codebook_size)

    def _compare(self, shared: SharedVision) -> None:
        """Note, once a worker, how many codes float32 would have made others of; costs it a batch."""
        if self._is_compared or not shared.first:
            return
        self._is_compared = True
        exact = open_exact_vision(self._settings.vision)
        if exact is not None:
            number, changed = shared.compared(exact)
            self._notes.update({COMPARED: number, CHANGED: changed})
        shared.remembers = False
        shared.first.clear()

    def _read_texts(self, part: Selected, rows: pl.DataFrame, samples: Sequence[TokenSample]) -> Iterator[TokenSample]:
        """Encode texts in the decoding threads: tiktoken lets the interpreter go."""
        found = self._reader.samples(part.piece, rows, lambda data: self._ids(data.decode("utf-8")))
        for sample, ids in zip(samples, found, strict=True):
            if isinstance(ids, SampleError):
                sample.error = ids
            else:
                sample.segments, sample.text_ids = [TextSegment(0, len(ids), "body")], ids
            yield sample

    def _ids(self, text: str) -> NDArray[np.uint32]:
        try:
            return self._vocabulary.encode(self._shown(text))
        except (TokenmillError, ImportError, MemoryError, OSError):
            raise
        except Exception as error:  # the tokenizer's fault, not the sample's
            raise RunError(f"the text tokenizer failed: {type(error).__name__}: {error}") from error

    def _encode_images(
        self, part: Selected, rows: pl.DataFrame, samples: Sequence[TokenSample]
    ) -> Iterator[TokenSample]:
        self._images.seconds = self._seconds
        pictures = zip(samples, self._images.read(self._reader, part.piece, rows, self._known), strict=True)
        for sample, found in self._images.encoded(pictures):
            try:
                if isinstance(found, SampleError):
                    raise found
                texts, (height, width) = self._said(sample), found.shape
                sample.segments = with_vision(texts, VisionSegment(1, height, width, 0))
                sample.codes = [found[None]]
            except SampleError as error:  # of the picture, or of a caption that cannot be encoded
                sample.error = error
            yield sample

    def _encode_documents(
        self, part: Selected, rows: pl.DataFrame, samples: Sequence[TokenSample]
    ) -> Iterator[TokenSample]:
        self._images.seconds = self._seconds
        for sample in self._documents(self._reader, part.piece, rows, samples):
            if sample.left_out:
                self._notes[LEFT_OUT] += len(sample.left_out)
            yield sample

    def _encode_clips(
        self, part: Selected, rows: pl.DataFrame, samples: Sequence[TokenSample]
    ) -> Iterator[TokenSample]:
        """Decode clips in the decoding threads, which share the model."""
        self._clips.seconds = self._seconds
        by_key = {sample.row["key"]: sample for sample in samples}

        def encode(decoder: VideoDecoder, path: Path, row: Mapping[str, Any]) -> None:
            sample = by_key[row["key"]]
            texts = self._said(sample)
            try:
                codes, sample.clip = self._clips(decoder, path, row, texts, self._known.get(row["key"]))
            except SampleError as error:
                if error.reason not in REFUSALS:
                    raise
                sample.error = error  # beside the budget of failures: any number in a row may be too long
                return
            sample.codes, sample.segments = [codes], with_vision(texts, sample.clip.segment)

        for sample, result in zip(samples, self._reader.clips(rows, encode), strict=True):
            if isinstance(result, SampleError):
                sample.error = result
            yield sample

    def _said(self, sample: TokenSample) -> list[Segment]:
        """Return a sample's words as segments, and put their ids into it."""
        texts, sample.text_ids = sample.words.segments(self._vocabulary.encode)
        return texts

    def _shown(self, text: str) -> str:
        """Return a text as the archive may hold it."""
        return text if self._settings.mask is None else self._settings.mask(text)

    def _write(self, job: Job, carried: Sequence[str], samples: Iterable[TokenSample]) -> Commit:
        (target,) = job.targets
        modality, codebook_size = self._settings.modality, self._shared.vision.codebook_size if self._shared else 0
        rows, failed = [], Counter[str]()
        with target.folder.store.staging(target.folder.path) as path:
            with ArchiveWriter(path) as writer:
                for sample in samples:
                    started = time.perf_counter()
                    rows.append(archive_row(writer, sample, self._document(sample, carried), modality, codebook_size))
                    failed.update([sample.error.reason] if sample.error else ())
                    self._notes[TAKEN_OVER] += self._is_taken_over(sample)
                    self._seconds["write"] += time.perf_counter() - started
            started = time.perf_counter()
            frame = pl.DataFrame(rows, schema=index_columns(modality), orient="row")
            archive = StagedArchive(path=path, bytes=writer.bytes, sha256=writer.sha256)
            commit = publish(job, target, archive_output(frame, failed, archive, self._notes[LEFT_OUT]))
            self._seconds["write"] += time.perf_counter() - started
        return commit

    def _is_taken_over(self, sample: TokenSample) -> bool:
        known = self._known.get(sample.row["key"])
        if sample.is_taken_over:
            return True
        return known is not None and len(sample.codes) == 1 and np.shares_memory(sample.codes[0], known.codes)

    def _document(self, sample: TokenSample, carried: Sequence[str]) -> dict[str, Any]:
        """Return what the sample's JSON says beside its segments."""
        described = {"source_caption": sample.row["caption"], "metadata": finite(json.loads(sample.row["metadata"]))}
        return {
            **sample.words.described,
            **({"left_out": {str(n): why for n, why in sample.left_out.items()}} if sample.left_out else {}),
            "source": self._reader.name,
            "key": sample.row["key"],
            "scores": {name: finite(sample.row[name]) for name in carried},
            "licence": self._settings.licence,
            **(described if self._settings.mask is None else self._settings.mask.in_json(described)),
        }
