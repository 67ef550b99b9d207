"""Copies by meaning and among texts, from the recipe to the selection; the scorers are stand-ins of a few lines."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from tests import tiny

from tokenmill.filters import scorer
from tokenmill.manifests.archive import ArchiveWriter
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.checks import check_chain
from tokenmill.recipe import check_recipe

WORDS = [f"word{number}" for number in range(60)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five pictures and five texts in two shards and one file."""
    monkeypatch.setitem(scorer.BUILT_IN, "colour_vectors", "tests.small_scorers:ColourVectors")
    monkeypatch.setitem(scorer.BUILT_IN, "word_signatures", "tests.small_scorers:WordSignatures")
    (tmp_path / "data/scenes").mkdir(parents=True)
    (tmp_path / "data/text").mkdir()
    pictures = (
        {"a": tiny.picture(1), "b": tiny.picture(12)},
        {"a-noisy": noisy(1), "c": tiny.picture(33), "flat": flat()},
    )
    for shard, members in enumerate(pictures):
        with ArchiveWriter(tmp_path / f"data/scenes/{shard:02d}.tar") as writer:
            for key, picture in members.items():
                writer.add(key, {"png": picture, "txt": b"a scene"})
    texts = {
        "whole": WORDS,
        "other": [word.upper() + "x" for word in WORDS],
        "longer": [*WORDS, "and", "one", "more"],
        "half": WORDS[:30],
        "same": WORDS,
    }
    lines = [json.dumps({"id": key, "text": " ".join(words)}) for key, words in texts.items()]
    (tmp_path / "data/text/texts.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def noisy(seed: int) -> bytes:
    pixels = np.asarray(Image.open(BytesIO(tiny.picture(seed))).convert("RGB")).astype(int)
    noise = np.random.default_rng(0).integers(-60, 61, pixels.shape)
    return encoded(np.clip(pixels + noise, 0, 255))


def flat() -> bytes:
    return encoded(np.full((64, 64, 3), 99))


def encoded(pixels: Any) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def fates(folder: Path, **changes: Any) -> dict[str, tuple[str, str]]:
    wanted = {
        "execution.unit_rows": 2,
        "filter.image.scorers": {"resolution": {}, "colour_vectors": {}},
        "filter.image.carry": [],
        "filter.image.duplicates": {"semantic": {"min_cosine": 0.98}},
        "filter.text.scorers": {"text_statistics": {}, "word_signatures": {}},
        "filter.text.duplicates": {"text": {"min_jaccard": 0.8}, "prefer": ["num_words DESC"]},
    } | changes
    value = tiny.recipe(folder / "data", str(folder / "root"), wanted, sources=["scenes", "text"])
    chain = Chain(recipe=check_recipe(value, "tiny"), options=ChainOptions(quiet=True))
    check_chain(chain)
    found: dict[str, tuple[str, str]] = {}
    for snapshot in chain.select.values():
        rows = pl.concat([snapshot.folder.read_rows(commit) for commit in snapshot.commits])
        dropped = rows.filter(pl.col("drop_reason").is_not_null()).select("key", "drop_reason", "duplicate_of")
        found |= {key: (reason, of) for key, reason, of in dropped.rows()}
    return found


def test_copies_by_meaning_and_among_texts_are_dropped_with_their_reason(folder: Path) -> None:
    assert fates(folder) == {
        "a-noisy": ("semantic_duplicate", "scenes/a"),
        "same": ("text_duplicate", "text/longer"),  # the exact copy of a near copy of what it names
        "whole": ("text_duplicate", "text/longer"),
    }


def test_evaluation_samples_by_vector_and_by_signature_contaminate(folder: Path) -> None:
    for name in ("exam", "quiz"):
        (folder / name).mkdir()
    (folder / "exam/q.png").write_bytes(tiny.picture(1))
    (folder / "quiz/q.jsonl").write_text(json.dumps({"id": "q", "text": " ".join(WORDS[1:])}) + "\n")
    exam = {"name": "exam", "kind": "images", "url": str(folder / "exam"), "exact": False, "min_cosine": 0.98}
    quiz = {"name": "quiz", "kind": "jsonl", "url": str(folder / "quiz"), "min_jaccard": 0.8}
    found = fates(folder, **{"filter.image.decontaminate": [exam], "filter.text.decontaminate": [quiz]})
    assert found == {
        "a": ("contaminated", "exam/q.png"),
        "a-noisy": ("contaminated", "exam/q.png"),
        **dict.fromkeys(("whole", "longer", "same"), ("contaminated", "quiz/q")),
    }
