"""Tokenized sources made up from rules: for tests and benchmarks of planning, loading and training.

They are laid out as the tokenize stage lays them out (archives, indexes, records, a snapshot), need no tokenizer and no
media, and hold something to learn: a picture is a rectangle of one code on a ground of another, and its caption names
both. A second makes about a thousand samples.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from tokenmill.manifests.archive import ArchiveWriter, npy_bytes
from tokenmill.manifests.identity import digest_of, sha256_hex
from tokenmill.manifests.records import Commit, Counts, FileEntry, InputRef, unit_name
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageConfig, StageDir, table_bytes
from tokenmill.manifests.storage import Store
from tokenmill.tokenize.documents import Segment, TextSegment, VisionSegment, segments_to_json
from tokenmill.tokenize.segments import ANSWERS
from tokenmill.tokenize.vocabulary import Vocabulary

INDEX_SCHEMA = {
    "key": pl.String,
    "modality": pl.String,
    "segments": pl.String,
    "num_text": pl.Int32,
    "num_codes": pl.Int32,
    "codes_offset": pl.Int64,
    "codes_length": pl.Int64,
    "text_offset": pl.Int64,
    "text_length": pl.Int64,
    "json_offset": pl.Int64,
    "json_length": pl.Int64,
}
RED, BLUE = 1, 2  # codes of a preference pair's pictures
_WORDS = ("the", "a", "red", "blue", "small", "large", "square", "circle", "stands", "lies", "near", "over", "under")


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """How much of what a made-up source holds."""

    images: int = 0
    clips: int = 0
    texts: int = 0
    pairs: int = 0  # of preference: of two pictures the one with more of code RED
    side: int = 8  # codes along each side of a picture
    latent_frames: int = 3
    text_words: int = 40  # on average
    shards: int = 2


TokenSample = tuple[str, str, list[Segment], Any, Any]  # key, modality, segments, text ids, codes


def write_token_source(
    store: Store, source: str, vocabulary: Vocabulary, amounts: Amounts, *, seed: int = 0
) -> Snapshot:
    """Write a tokenized source and its snapshot; equal arguments give equal bytes."""
    rng = np.random.default_rng(int(digest_of([source, seed])[:15], 16))
    samples = list(_samples(source, vocabulary, amounts, rng))
    order = rng.permutation(len(samples))
    groups = [[samples[number] for number in part] for part in np.array_split(order, amounts.shards)]
    return write_shards(store, source, vocabulary, groups)


def write_shards(
    store: Store, source: str, vocabulary: Vocabulary, groups: Sequence[Sequence[TokenSample]]
) -> Snapshot:
    """Write a tokenized source of these samples, a shard a group, and its snapshot."""
    config = StageConfig(
        stage="tokenize",
        version=1,
        schema=1,
        settings={"vocabulary": vocabulary.spec, "vision": {"name": "made-up"}},
        fingerprints={"vocabulary": vocabulary.fingerprint},
    )
    folder = StageDir(store=store, source=source, config=config)
    folder.describe()
    snapshot = Snapshot(folder=folder, commits=tuple(_shard(folder, n, group) for n, group in enumerate(groups)))
    snapshot.publish()
    return snapshot


def _samples(source: str, vocabulary: Vocabulary, amounts: Amounts, rng: np.random.Generator) -> Iterator[TokenSample]:
    for number in range(amounts.images):
        yield _picture(f"{source}-image-{number:06d}", vocabulary, amounts.side, 1, rng)
    for number in range(amounts.clips):
        yield _picture(f"{source}-clip-{number:06d}", vocabulary, amounts.side, amounts.latent_frames, rng)
    for number in range(amounts.texts):
        words = rng.choice(_WORDS, size=max(1, int(rng.lognormal(np.log(amounts.text_words), 0.8))))
        ids = np.array(vocabulary.text.encode(" ".join(words) + "."), np.uint32)
        yield f"{source}-text-{number:06d}", "text", [TextSegment(0, len(ids), "body")], ids, np.empty(0, np.uint16)
    for number in range(amounts.pairs):
        yield _pair(f"{source}-pair-{number:06d}", vocabulary, amounts.side, rng)


def _picture(key: str, vocabulary: Vocabulary, side: int, frames: int, rng: np.random.Generator) -> TokenSample:
    ground, shape = (int(code) for code in rng.integers(0, min(16, vocabulary.codebook_size), 2))
    top, left = (int(place) for place in rng.integers(0, side - 2, 2))
    codes_THW = np.full((frames, side, side), ground, np.uint16 if vocabulary.codebook_size <= 2**16 else np.uint32)
    for frame in range(frames):
        column = min(left + frame, side - 2)
        codes_THW[frame, top : top + 2, column : column + 2] = shape
    ids = np.array(vocabulary.text.encode(f"shape {shape} at {top},{left} on {ground}"), np.uint32)
    fps, seconds = (8.0, frames / 2) if frames > 1 else (None, None)
    segments: list[Segment] = [
        TextSegment(0, len(ids), "caption"),
        VisionSegment(frames, side, side, 0, fps=fps, seconds=seconds),
    ]
    return key, "video" if frames > 1 else "image", segments, ids, codes_THW.reshape(-1)


def _pair(key: str, vocabulary: Vocabulary, side: int, rng: np.random.Generator) -> TokenSample:
    """Give two pictures for one caption: three quarters of the codes of the chosen one are RED, the other's BLUE."""
    kind = np.uint16 if vocabulary.codebook_size <= 2**16 else np.uint32
    places = rng.permuted(np.tile(np.arange(side * side), (2, 1)), axis=1)
    codes = np.where(places < (side * side * np.array([[3], [1]])) // 4, RED, BLUE).astype(kind)
    ids = np.array(vocabulary.text.encode(f"picture {rng.integers(10)}"), np.uint32)
    chosen, rejected = (
        VisionSegment(1, side, side, number * side * side, answer=answer) for number, answer in enumerate(ANSWERS)
    )
    return key, "image", [TextSegment(0, len(ids), "caption", learn=False), chosen, rejected], ids, codes.reshape(-1)


def _shard(folder: StageDir, number: int, samples: Sequence[TokenSample]) -> Commit:
    inputs = (InputRef(name=f"made-up-{number:05d}", digest=digest_of([sample[0] for sample in samples])),)
    unit = unit_name(inputs)
    rows: list[tuple[Any, ...]] = []
    with folder.store.staging(folder.path) as staged:
        with ArchiveWriter(staged) as writer:
            for key, modality, segments, ids, codes in samples:
                document = {"key": key, "segments": segments_to_json(segments)}
                members = {
                    "codes.npy": npy_bytes(codes),
                    "text.npy": npy_bytes(ids),
                    "json": json.dumps(document).encode(),
                }
                places = writer.add(key, members)
                spans = [
                    n for name in ("codes.npy", "text.npy", "json") for n in (places[name].offset, places[name].length)
                ]
                text = json.dumps(document["segments"])
                rows.append((key, modality, text, len(ids), len(codes), *spans))
        data = FileEntry(name=f"{unit}-{writer.sha256[:8]}.tar", role="data", bytes=writer.bytes, sha256=writer.sha256)
        folder.store.put_file(folder.at(data.name), staged)
    index = table_bytes(pl.DataFrame(rows, schema=INDEX_SCHEMA, orient="row"), 1)
    table = FileEntry(
        name=f"{unit}-{sha256_hex(index)[:8]}.parquet", role="rows", bytes=len(index), sha256=sha256_hex(index)
    )
    folder.store.put(folder.at(table.name), index)
    counts = Counts(rows_in=len(samples), kept=len(samples), out=len(samples))
    commit = Commit(stage="tokenize", source=folder.source, config=folder.config.digest, unit=unit, inputs=inputs,
                    counts=counts, files=(data, table))  # fmt: skip
    return folder.publish_commit(commit)
