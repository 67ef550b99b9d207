"""The text half of the toy vocabulary: a byte-level BPE trained on the words that the toy world has.

Captions become some ten ids in place of fifty bytes, and what the world never says still has ids. Training is
deterministic: the same samples give the same file. The trade-off: 700 ids, most of which are whole words; a prompt of
other words falls apart into bytes that the model knows little of.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl

SIZE = 700
_CHAT = "You are a helpful assistant. USER: . ASSISTANT:"
_META = ("4*4", "4*4 8fps 4s", "4*4 8fps 2s")
_REPEATED = 1000  # so that the words around are whole ids too


def train_words(target: Path, pictures: Path, clips: Path) -> None:
    """Train on the captions and questions of written pictures and clips, and write a `tokenizer.json`; once.

    The control has the same words in another order, so both share the file.
    """
    if target.exists():
        return
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=SIZE, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([*_texts(pictures, clips), *[_CHAT, *_META] * _REPEATED], trainer)
    staged = target.with_name(f"{target.name}.writing")
    made.save(str(staged))
    staged.replace(target)


def _texts(pictures: Path, clips: Path) -> Iterator[str]:
    for table in sorted(pictures.glob("*.parquet")):
        rows = pl.read_parquet(table, columns=["captions", "questions"])
        for captions, asked in rows.iter_rows():
            yield from _words(captions, asked)
    with (clips / "captions.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield from _words(row["captions"], row["questions"])


def _words(captions: list[str], asked: str) -> Iterator[str]:
    yield from captions
    for pair in json.loads(asked):
        yield from (pair["question"], pair["answer"])
