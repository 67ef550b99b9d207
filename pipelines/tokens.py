"""Stage tokenize: kept samples → token archives, one sample = `codes.npy`, `text.npy`, `json` (DESIGN §3).

Pictures are resized, bucketed by size (padding a batch of mixed sizes would change codes) and encoded in batches
whose composition depends on the unit alone. Codes are small (a 512² picture is 8 KB), so a unit's codes wait in
memory and the archive is written in the order of the source.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.manifests.archive import ArchiveWriter, npy_bytes
from tokenmill.manifests.records import Counts, InputRef
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.archive_json import finite, json_text
from tokenmill.pipelines.decode_video import VideoDecoder
from tokenmill.pipelines.decoding import DecodeLimits, SampleReader, failure_values
from tokenmill.pipelines.jobs import Job, JobResult, StagedArchive, StageWork, Unit, UnitOutput, publish
from tokenmill.pipelines.samples import FAILURE_COLUMNS
from tokenmill.pipelines.selected import Selected
from tokenmill.pipelines.tokens_clip import REFUSALS, ClipArea, ClipEncoder, Sampling
from tokenmill.pipelines.tokens_settings import TokenSettings
from tokenmill.tokenize.preprocess import resize, target_size
from tokenmill.tokenize.segments import Segment, TextSegment, VisionSegment, segments_to_json
from tokenmill.tokenize.vision import VisionTokenizer, load_vision_tokenizer, vision_fingerprint
from tokenmill.tokenize.vocabulary import Vocabulary, build_vocabulary

VERSIONS = {"image": 2, "text": 2, "video": 3}
SCHEMA = 1
_PLACES = ("codes", "text", "json")
_INDEX_COLUMNS: dict[str, Any] = {
    "key": pl.String,
    "modality": pl.String,
    "segments": pl.String,
    "num_text": pl.Int32,
    "num_codes": pl.Int32,
    **{f"{member}_{what}": pl.Int64 for member in _PLACES for what in ("offset", "length")},
}


def tokenize_work(
    store: Store,
    settings: TokenSettings,
    fingerprints: Mapping[str, str],
    selected: Sequence[Selected],
    captions: Snapshot | None,
    limits: DecodeLimits,
    parents: Mapping[str, str],
) -> StageWork:
    """Describe the tokenizing of one source; `captions` is None for text, which needs none."""
    piece = selected[0].piece
    config = StageConfig(
        stage="tokenize",
        version=VERSIONS[settings.modality],
        schema=SCHEMA,
        settings={**settings.identity, **(limits.settings if settings.modality != "text" else {})},
        fingerprints=fingerprints,
    )
    units = []
    for index, part in enumerate(selected):
        commit = None if captions is None else captions.commits[index]
        extra = () if commit is None else (InputRef(name="captions", digest=commit.digests["captions"]),)
        inputs = (part.piece.reference("rows"), part.kept_reference, *extra)  # metadata is in the archive
        units.append(Unit(inputs=inputs, payload={"part": part, "captions": commit}))
    return StageWork(
        title=f"tokenize {piece.source}",
        folders=(StageDir(store=store, source=piece.source, config=config),),
        units=units,
        make_worker=partial(
            TokenWorker, piece.source, dict(piece.settings), settings, limits, captions.folder if captions else None
        ),
        parents=parents,
    )


@dataclass(slots=True)
class _Sample:
    """A sample on its way into the archive."""

    row: Mapping[str, Any]
    captions: Sequence[str] = ()
    body: str | None = None
    codes: NDArray[np.uint32] | None = None  # (t, h, w)
    clip: Sampling | None = None
    texts: tuple[list[Segment], NDArray[np.uint32]] | None = None
    error: SampleError | None = None


@dataclass
class _Buckets:
    """Pictures that wait for a full batch of their size."""

    batch_size: int
    waiting: dict[tuple[int, ...], list[tuple[_Sample, NDArray[np.uint8]]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, sample: _Sample, pixels: NDArray[np.uint8]) -> list[tuple[_Sample, NDArray[np.uint8]]]:
        """Put a picture in its bucket; returns the bucket's pictures when it is full, else nothing."""
        bucket = self.waiting[pixels.shape]
        bucket.append((sample, pixels))
        return self.waiting.pop(pixels.shape) if len(bucket) == self.batch_size else []

    def rest(self) -> Iterator[list[tuple[_Sample, NDArray[np.uint8]]]]:
        """Yield what is left, smallest size first."""
        for shape in sorted(self.waiting):
            yield self.waiting[shape]


def open_vision(spec: Mapping[str, Any]) -> VisionTokenizer:
    """Load the vision tokenizer of a recipe: `name` (or a folder), everything else options."""
    options = {key: value for key, value in spec.items() if key != "name"}
    return load_vision_tokenizer(spec["name"], **options)


def fingerprint_of_vision(spec: Mapping[str, Any]) -> str:
    """Return the fingerprint of a recipe's vision tokenizer, without building it where its files tell."""
    return vision_fingerprint(spec["name"], **{key: value for key, value in spec.items() if key != "name"})


class TokenWorker:
    """Decodes, encodes and writes one slice; holds the vision tokenizer."""

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
        if settings.modality != "text":
            self._vision = open_vision(settings.vision)
        self._clips: ClipEncoder | None = None
        if self._vision is not None and settings.clip is not None:
            area = ClipArea(min_area=settings.min_area, max_area=settings.max_area, max_aspect=settings.max_aspect)
            self._clips = ClipEncoder(self._vision, settings.clip, area, self._vocabulary)
        self._seconds: dict[str, float] = {}

    def close(self) -> None:
        self._reader.close()

    def __call__(self, job: Job) -> JobResult:
        self._seconds = defaultdict(float)
        part: Selected = job.unit.payload["part"]
        rows = part.read()
        captions = {}
        if self._captions is not None:
            table = self._captions.read_rows(job.unit.payload["captions"])
            answered = table.filter(pl.col("fail_reason").is_null())
            captions = dict(answered.select("key", "captions").iter_rows())
            rows = rows.filter(pl.col("key").is_in(list(captions)))
        samples = [
            _Sample(row=row, captions=[self._shown(text) for text in captions.get(row["key"], ())])
            for row in rows.iter_rows(named=True)
        ]
        self._fill(part, rows, samples)
        commit = self._write(job, part.carried(), samples)
        return JobResult(commits=(commit,), seconds=dict(self._seconds))

    def _fill(self, part: Selected, rows: pl.DataFrame, samples: Sequence[_Sample]) -> None:
        if self._settings.modality == "text":
            for sample, text in zip(samples, self._reader.texts(part.piece, rows), strict=True):
                if isinstance(text, SampleError):
                    sample.error = text
                else:
                    sample.body = self._shown(text)
        elif self._settings.modality == "image":
            self._encode_images(part, rows, samples)
        else:
            self._encode_clips(rows, samples)

    def _shown(self, text: str) -> str:
        """Return a text as the archive may hold it."""
        return text if self._settings.mask is None else self._settings.mask(text)

    def _described(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the source says of a sample, as the archive may hold it."""
        described = {"source_caption": row["caption"], "metadata": finite(json.loads(row["metadata"]))}
        masked: dict[str, Any] = described if self._settings.mask is None else self._settings.mask.in_json(described)
        return masked

    def _encode_images(self, part: Selected, rows: pl.DataFrame, samples: Sequence[_Sample]) -> None:
        assert self._vision is not None
        buckets = _Buckets(self._vision.batch_size)
        mark = time.perf_counter()
        for sample, image in zip(samples, self._reader.images(part.piece, rows), strict=True):
            if isinstance(image, SampleError):
                sample.error = image
                continue
            try:
                full = buckets.add(sample, self._fitted(image))
            except SampleError as error:
                sample.error = error
                continue
            self._seconds["decode"] += time.perf_counter() - mark
            self._encode_batch(full)
            mark = time.perf_counter()
        for batch in buckets.rest():
            self._encode_batch(batch)

    def _encode_batch(self, batch: Sequence[tuple[_Sample, NDArray[np.uint8]]]) -> None:
        if not batch:
            return
        assert self._vision is not None
        started = time.perf_counter()
        codes_bhw = self._vision.encode_images(np.stack([pixels for _, pixels in batch]))
        for (sample, _), codes in zip(batch, codes_bhw, strict=True):
            sample.codes = codes[None]
        self._seconds["model"] += time.perf_counter() - started

    def _fitted(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return resize(image, self._size(image.shape[0], image.shape[1]))

    def _size(self, height: int, width: int) -> tuple[int, int]:
        limits = self._settings
        return target_size(
            height, width, min_area=limits.min_area, max_area=limits.max_area, max_aspect=limits.max_aspect
        )

    def _encode_clips(self, rows: pl.DataFrame, samples: Sequence[_Sample]) -> None:
        """Decode and encode clips in the decoding threads; one has the model at a time."""
        assert self._clips is not None
        clips, by_key = self._clips, {sample.row["key"]: sample for sample in samples}
        clips.seconds = self._seconds
        for sample in samples:
            self._texts(sample)

        def encode(decoder: VideoDecoder, path: Path, row: Mapping[str, Any]) -> None:
            sample = by_key[row["key"]]
            try:
                sample.codes, sample.clip = clips(decoder, path, row, self._texts(sample)[0])
            except SampleError as error:
                if error.reason not in REFUSALS:
                    raise
                sample.error = error  # beside the budget of failures: any number in a row may be too long

        for sample, result in zip(samples, self._reader.clips(rows, encode), strict=True):
            if isinstance(result, SampleError):
                sample.error = result

    def _write(self, job: Job, carried: Sequence[str], samples: Sequence[_Sample]) -> Any:
        started = time.perf_counter()
        (target,) = job.targets
        with target.folder.store.staging(target.folder.path) as path:
            with ArchiveWriter(path) as writer:
                rows = [self._row(writer, sample, carried) for sample in samples]
            frame = pl.DataFrame(rows, schema=_index_columns(self._settings.modality), orient="row")
            archive = StagedArchive(path=path, bytes=writer.bytes, sha256=writer.sha256)
            commit = publish(job, target, _output(frame, samples, archive))
        self._seconds["write"] += time.perf_counter() - started
        return commit

    def _row(self, writer: ArchiveWriter, sample: _Sample, carried: Sequence[str]) -> tuple[Any, ...]:
        key = sample.row["key"]
        if sample.error is not None:
            blank = (None,) * (len(_INDEX_COLUMNS) - 1)
            return (key, *blank, *self._fit(sample), *failure_values("tokenize", sample.error))
        segments, text_ids = self._segments(sample)
        codes = _stored_codes(sample.codes, self._vision.codebook_size if self._vision else 0)
        described = segments_to_json(segments)
        document = {
            "segments": described,
            "captions": list(sample.captions),
            "source": self._reader.name,
            "key": key,
            "scores": {name: finite(sample.row[name]) for name in carried},
            "licence": self._settings.licence,
            **self._described(sample.row),
        }
        members = {
            "codes.npy": npy_bytes(codes),
            "text.npy": npy_bytes(text_ids),
            # Half of a surrogate pair, which metadata may hold, becomes JSON's own escape for it.
            "json": json_text(document).encode("utf-8", "backslashreplace"),
        }
        placed = writer.add(key, members)
        places = [placed[name] for name in ("codes.npy", "text.npy", "json")]
        return (
            key,
            self._settings.modality,
            json.dumps(described, sort_keys=True),
            len(text_ids),
            len(codes),
            *(number for place in places for number in (place.offset, place.length)),
            *self._fit(sample),
            *failure_values("tokenize", None),
        )

    def _fit(self, sample: _Sample) -> tuple[str | None, ...]:
        """Return the column `fit`, which only clips have."""
        if self._settings.modality != "video":
            return ()
        return (None if sample.clip is None or sample.error else sample.clip.fit,)

    def _segments(self, sample: _Sample) -> tuple[list[Segment], NDArray[np.uint32]]:
        """Return the document's segments, and the text ids they point into."""
        texts, ids = self._texts(sample)
        if sample.clip is not None:
            return [*texts, sample.clip.segment], ids
        if sample.codes is not None:
            t, h, w = sample.codes.shape
            return [*texts, VisionSegment(t, h, w, 0)], ids
        return texts, ids

    def _texts(self, sample: _Sample) -> tuple[list[Segment], NDArray[np.uint32]]:
        """Return a sample's texts as segments, and their ids: captions as variants, or the body."""
        if sample.texts is None:
            segments: list[Segment] = []
            ids: list[int] = []
            texts = [sample.body] if sample.body is not None else sample.captions
            for variant, text in enumerate(texts):
                start = len(ids)
                ids += self._vocabulary.text.encode(text)
                role: Any = "body" if sample.body is not None else "caption"
                segments.append(TextSegment(start, len(ids), role, variant=0 if role == "body" else variant))
            sample.texts = segments, np.asarray(ids, dtype=np.uint32)
        return sample.texts


def _index_columns(modality: str) -> dict[str, Any]:
    return _INDEX_COLUMNS | ({"fit": pl.String} if modality == "video" else {}) | FAILURE_COLUMNS


def _stored_codes(codes: NDArray[np.uint32] | None, codebook_size: int) -> NDArray[np.unsignedinteger[Any]]:
    """Return codes flattened in the format's type: uint16, or uint32 for codebooks over 65,536."""
    kind = np.uint16 if codebook_size <= 2**16 else np.uint32
    return np.zeros(0, dtype=kind) if codes is None else codes.ravel().astype(kind)


def _output(frame: pl.DataFrame, samples: Sequence[_Sample], archive: StagedArchive) -> UnitOutput:
    failed = Counter(sample.error.reason for sample in samples if sample.error)
    kept = len(samples) - sum(failed.values())
    totals = {
        "text_ids": int(frame["num_text"].sum() or 0),
        "codes": int(frame["num_codes"].sum() or 0),
        "bytes": archive.bytes,
    }
    if "fit" in frame.columns:
        fits = Counter(frame["fit"].drop_nulls())
        totals |= {f"clips.{fit}": number for fit, number in sorted(fits.items())}
    counts = Counts(rows_in=len(samples), kept=kept, out=kept, failed=dict(sorted(failed.items())))
    return UnitOutput(rows=frame, counts=counts, totals=totals, archive=archive)
