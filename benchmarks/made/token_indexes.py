"""A tokenized source as planning sees it: indexes, records and a snapshot, and archives that nobody opens.

40 % pictures of 64×64 codes, 20 % of 32×32, each with one to three captions; 40 % text, log-normal with a median of 600
ids and sigma 1.2. Rows are those of the tokenize stage; keys, lengths and places differ from row to row.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.demo.tokens import INDEX_SCHEMA
from tokenmill.manifests.identity import digest_of, sha256_hex
from tokenmill.manifests.records import Commit, Counts, FileEntry, InputRef, unit_name
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageConfig, StageDir, table_bytes
from tokenmill.manifests.storage import open_store
from tokenmill.tokenize.vocabulary import byte_vocabulary

VOCABULARY = byte_vocabulary(32_768)
SOURCE = "made-up"
_SIDES = (64, 32)
_SHARES = (0.4, 0.2, 0.4)  # of large pictures, of small ones, of texts
_CAPTIONS = 3


def token_folder(root: Path) -> StageDir:
    """Give the source's folder below a root."""
    config = StageConfig(
        stage="tokenize",
        version=1,
        schema=1,
        settings={"vocabulary": VOCABULARY.spec, "vision": {"name": "made-up"}},
        fingerprints={"vocabulary": VOCABULARY.fingerprint},
    )
    return StageDir(store=open_store(str(root)), source=SOURCE, config=config)


def write_indexes(root: Path, documents: int, files: int, processes: int) -> Snapshot:
    """Write the source; equal arguments give equal bytes."""
    folder = token_folder(root)
    folder.describe()
    counts = np.diff(np.linspace(0, documents, files + 1).astype(int)).tolist()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:  # polars does not survive a fork
        commits = list(pool.map(partial(_write_index, root), range(files), counts))
    snapshot = Snapshot(folder=folder, commits=tuple(commits))
    snapshot.publish()
    return snapshot


def _write_index(root: Path, number: int, count: int) -> Commit:
    folder = token_folder(root)
    inputs = (InputRef(name=f"made-up-{number:05d}", digest=digest_of(["made-up", number, count])),)
    unit = unit_name(inputs)
    if folder.store.exists(folder.at(f"commits/{unit}.0.json")):  # of a run that was ended
        return folder.read_commit(unit, 0)
    frame = index_rows(number, count)
    data = table_bytes(frame, 1)
    sha256 = sha256_hex(data)
    table = FileEntry(name=f"{unit}-{sha256[:8]}.parquet", role="rows", bytes=len(data), sha256=sha256)
    folder.store.put(folder.at(table.name), data)
    size, digest = int(frame["json_offset"][-1]) + 10_240, digest_of(["archive", number, count])
    archive = FileEntry(name=f"{unit}-{digest[:8]}.tar", role="data", bytes=size, sha256=digest)
    totals = {"text_ids": int(frame["num_text"].sum()), "codes": int(frame["num_codes"].sum()), "bytes": size}
    counts = Counts(rows_in=count, kept=count, out=count)
    commit = Commit(stage="tokenize", source=SOURCE, config=folder.config.digest, unit=unit, inputs=inputs,
                    counts=counts, files=(archive, table), totals=totals)  # fmt: skip
    return folder.publish_commit(commit)


def index_rows(number: int, count: int) -> pl.DataFrame:
    """Make the rows of one index."""
    random = np.random.default_rng([number, count])
    kinds = random.choice(3, size=count, p=_SHARES)
    texts = np.maximum(2, random.lognormal(np.log(600), 1.2, size=count)).astype(np.int64)
    captions = random.integers(1, _CAPTIONS + 1, size=count)
    words = np.maximum(3, random.lognormal(np.log(70), 0.5, size=(count, _CAPTIONS))).astype(np.int64)
    words[np.arange(_CAPTIONS) >= captions[:, None]] = 0
    num_text = np.where(kinds == 2, texts, words.sum(axis=1))
    num_codes = np.where(kinds == 2, 0, np.array([*(side * side for side in _SIDES), 0])[kinds])
    lengths = {"codes": 128 + 2 * num_codes, "text": 128 + 4 * num_text, "json": np.full(count, 900)}
    padded = {name: 512 + -(-length // 512) * 512 for name, length in lengths.items()}
    starts = np.cumsum(sum(padded.values())) - sum(padded.values())
    columns: dict[str, Any] = {
        "key": pl.format("made-up-{}-{}", pl.lit(number), pl.int_range(count).cast(pl.String).str.zfill(7)),
        "modality": pl.Series(["image", "image", "text"]).gather(kinds),
        "segments": _segments(kinds, texts, words, captions),
        "num_text": num_text,
        "num_codes": num_codes,
    }
    for name, length in lengths.items():
        columns |= {f"{name}_offset": starts + 512, f"{name}_length": length}
        starts = starts + padded[name]
    frame = pl.select(**{name: columns[name] for name in INDEX_SCHEMA})
    return frame.cast(INDEX_SCHEMA)  # type: ignore[arg-type]


def _segments(
    kinds: NDArray[np.int64], texts: NDArray[np.int64], words: NDArray[np.int64], captions: NDArray[np.int64]
) -> pl.Expr:
    """Write segments as the tokenize stage does: every caption's ids, then the picture's codes; or a body's ids."""
    frame = pl.DataFrame({"kind": kinds, "text": texts, "captions": captions})
    ends = np.cumsum(words, axis=1)
    told = [
        pl.when(pl.col("captions") > number)
        .then(_caption(number, pl.Series(ends[:, number] - words[:, number]), pl.Series(ends[:, number])))
        .otherwise(pl.lit(""))
        for number in range(_CAPTIONS)
    ]
    side = pl.when(pl.col("kind") == 0).then(pl.lit(str(_SIDES[0]))).otherwise(pl.lit(str(_SIDES[1])))
    picture = pl.concat_str(*told, pl.lit('{"vision": [1, '), side, pl.lit(", "), side, pl.lit('], "offset": 0}'))
    body = pl.concat_str(
        pl.lit('{"text": [0, '),
        pl.col("text").cast(pl.String),
        pl.lit('], "role": "body", "learn": true, "variant": 0}'),
    )
    found = frame.select(
        pl.concat_str(pl.lit("["), pl.when(pl.col("kind") == 2).then(body).otherwise(picture), pl.lit("]"))
    )
    return pl.lit(found.to_series())


def _caption(number: int, start: pl.Series, end: pl.Series) -> pl.Expr:
    told = f'], "role": "caption", "learn": true, "variant": {number}' + "}, "
    bounds = (pl.lit(start).cast(pl.String), pl.lit(", "), pl.lit(end).cast(pl.String))
    return pl.concat_str(pl.lit('{"text": ['), *bounds, pl.lit(told))
