"""Plans written by hand, for what the planner would not plan: pieces cut anywhere, under any template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from tokenmill.demo.tokens import TokenSample
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.plans import DOCUMENT_COLUMNS, PACK_COLUMNS, Plan
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageConfig, StageDir, table_bytes
from tokenmill.manifests.storage import Store
from tokenmill.tokenize.documents import Segment, TextSegment, VisionSegment
from tokenmill.tokenize.vocabulary import Vocabulary

Row = dict[str, Any]  # shard, sample, frame, frames, start, length, template, variant


def write_plan_of(
    store: Store, snapshots: Sequence[Snapshot], packs: Sequence[Sequence[Row]], vocabulary: Vocabulary, context: int,
    *, weights: tuple[float, float] = (1.0, 0.5), window_packs: int = 1_000,
) -> Plan:  # fmt: skip
    """Write the tables of a plan with these packs, so many a window, and open it."""
    config = StageConfig(stage="plan", version=5, schema=1)
    folder = StageDir(store=store, source="plan", config=config, base="plans/hand/made")
    firsts = range(0, len(packs), window_packs)
    windows = pl.DataFrame([
        _window(folder, packs[first : first + window_packs]) | {"unit": str(first), "first_pack": first}
        for first in firsts
    ])  # fmt: skip
    shards = pl.DataFrame(
        [(s.folder.at(c.data.name), s.folder.at(c.rows.name)) for s in snapshots for c in s.commits],
        schema=["shard", "index"], orient="row",
    )  # fmt: skip
    description = {
        "phase": "hand", "context": context, "num_packs": len(packs), "text_weight": weights[0],
        "vision_weight": weights[1], "vocabulary": vocabulary.spec, "vocabulary_fingerprint": vocabulary.fingerprint,
    }  # fmt: skip
    return Plan(folder, description, windows, shards)


def _window(folder: StageDir, packs: Sequence[Sequence[Row]]) -> Row:
    """Write the two tables of a window; returns their names."""
    defaults = {"source": "hand", "repetition": 0, "weight": 1.0, "frame": 0, "frames": 0, "variant": 0}
    rows = [
        defaults | row | {"pack": number, "slot": slot}
        for number, pack in enumerate(packs)
        for slot, row in enumerate(pack)
    ]
    costs = [_cost(number, [row["length"] for row in pack]) for number, pack in enumerate(packs)]
    tables = {
        "documents": pl.DataFrame(rows, schema=dict(DOCUMENT_COLUMNS)),
        "packs": pl.DataFrame(costs, schema=dict(PACK_COLUMNS)),
    }
    names: Row = {"num_packs": len(packs)}
    for what, table in tables.items():
        data = table_bytes(table, 1)
        names[what] = f"{what}-{sha256_hex(data)[:8]}.parquet"
        folder.store.put(folder.at(names[what]), data)
    return names


def _cost(pack: int, lengths: Sequence[int]) -> Row:
    squares = sum(length * length for length in lengths)
    return {"pack": pack, "documents": len(lengths), "tokens": sum(lengths), "squares": squares, "weight": 1.0}


def made_samples(rng: np.random.Generator, number: int, vocabulary: Vocabulary) -> list[TokenSample]:
    """Make samples of every kind: pictures, clips told in stretches, texts, pages, chats; ids of both widths."""
    return [_sample(rng, f"sample-{n:04d}", n % 5, vocabulary) for n in range(number)]


def _sample(rng: np.random.Generator, key: str, kind: int, vocabulary: Vocabulary) -> TokenSample:
    maker = _Maker(rng)
    if kind == 0:
        segments = [maker.text("caption", variant=v) for v in range(int(rng.integers(1, 4)))] + [maker.vision()]
    elif kind == 1:
        caption = maker.text("caption")
        segments = [caption, maker.vision(frames=int(rng.integers(2, 5)))]
        segments += [maker.text("stretch", seconds=(float(n), n + 1.0)) for n in range(3)]
    elif kind == 2:
        segments = [maker.text("body", longest=300)]
    elif kind == 3:
        segments = [maker.vision() if rng.random() < 0.5 else maker.text("body") for _ in range(5)]
    else:
        segments = [maker.text("system")] if rng.random() < 0.5 else []
        for _ in range(int(rng.integers(1, 3))):
            segments += [maker.vision(role="user"), maker.text("user"), maker.text("user"), maker.text("assistant")]
    ids = rng.integers(0, vocabulary.text.size, maker.num_text)
    codes = rng.integers(0, vocabulary.codebook_size, maker.num_codes)
    text_type, code_type = (f"<u{width}" for width in rng.choice([2, 4], 2))
    modality = ("image", "video", "text", "document", "document")[kind]
    return key, modality, segments, ids.astype(text_type), codes.astype(code_type)


class _Maker:
    """Makes segments that follow one another in a sample's arrays."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.num_text = self.num_codes = 0

    def text(self, role: Any, *, longest: int = 30, **fields: Any) -> Segment:
        start = self.num_text
        self.num_text += int(self._rng.integers(0, longest))
        learn = bool(self._rng.random() < 0.8) and role not in ("system", "user")
        return TextSegment(start, self.num_text, role, learn, **fields)

    def vision(self, *, frames: int = 1, role: Any = None) -> Segment:
        height, width = (int(side) for side in self._rng.integers(1, 9, 2))
        offset = self.num_codes
        self.num_codes += frames * height * width
        told = {"fps": 8.0, "seconds": frames * 1.0} if frames > 1 else {}
        learn = bool(self._rng.random() < 0.8)
        return VisionSegment(frames, height, width, offset, learn=learn, role=role, **told)
