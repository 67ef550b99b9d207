"""Text tokenizers on long and hostile texts: the ids of pieces are those of the whole, and every id is checked."""

from __future__ import annotations

import base64
import json
import os
import random
import unicodedata
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import regex
from tests import tiny

from tokenmill.errors import RecipeError, RunError, SampleError
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.recipe import check_recipe
from tokenmill.tokenize import text_cuts
from tokenmill.tokenize.text import BUILT_IN, checked_ids
from tokenmill.tokenize.text_bytes import ByteTokenizer
from tokenmill.tokenize.text_cuts import QWEN_CUTS, cut
from tokenmill.tokenize.text_nfc import nfc
from tokenmill.tokenize.text_qwen import NUM_RANKS, SPLIT, QwenTokenizer
from tokenmill.tokenize.vocabulary import build_vocabulary

# One of every kind that the split expression, NFC or the places to cut tell apart.
KINDS = (
    "a",
    "S",
    "é",
    "中",
    "1",
    "²",
    " ",
    "\t",
    "\n",
    "\r",
    "\u00a0",
    "\u2000",
    "\x1c",
    "!",
    "'",
    "。",
    "\u0301",
    "\u0316",
)
EXPRESSION = regex.compile(SPLIT)  # by a library that shares nothing with the places to cut


@pytest.fixture(scope="module")
def qwen_path() -> Path:
    if named := os.environ.get("TOKENMILL_QWEN_TIKTOKEN"):
        return Path(named)
    spec = find_spec("dashscope")
    if spec is None or spec.origin is None:
        pytest.skip("no qwen.tiktoken: set TOKENMILL_QWEN_TIKTOKEN or install dashscope")
    return Path(spec.origin).parent / "resources" / "qwen.tiktoken"


@pytest.fixture(scope="module")
def qwen(qwen_path: Path) -> QwenTokenizer:
    return QwenTokenizer(qwen_path)


def texts_of(length: int) -> Iterator[str]:
    return ("".join(letters) for letters in product(KINDS, repeat=length))


def test_every_text_of_four_kinds_has_the_same_words_in_pieces() -> None:
    """All 104,976 of them: a place is certain or it is none."""
    for text in texts_of(4):
        for match in QWEN_CUTS.finditer(text):
            place = match.start()
            if place:
                parts = EXPRESSION.findall(text[:place]) + EXPRESSION.findall(text[place:])
                assert parts == EXPRESSION.findall(text), (text, place)
                assert nfc(text[:place]) + nfc(text[place:]) == nfc(text), (text, place)


def hostile(random_of: random.Random, length: int) -> str:
    """Return runs of one kind, of which some are long, so that every kind of run meets every other."""
    runs = (random_of.choice(KINDS) * random_of.choice((1, 1, 1, 2, 3, 50)) for _ in range(length))
    return "".join(runs)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_words_of_pieces_are_the_words_of_the_whole(size: int) -> None:
    random_of = random.Random(size)
    for _ in range(150):
        text = hostile(random_of, 40)
        pieces = list(cut(text, QWEN_CUTS, size))
        assert "".join(pieces) == text
        assert len(pieces) > 1
        assert [word for piece in pieces for word in EXPRESSION.findall(piece)] == EXPRESSION.findall(text)


def test_ids_of_a_long_text_are_those_of_the_whole(qwen: QwenTokenizer) -> None:
    random_of = random.Random(3)
    prose = "The licence, 许可证。Décidé: foo.bar/baz?\n\n  I'M 12,345 \t\r\n"
    text = "".join(random_of.choice((prose, hostile(random_of, 20))) for _ in range(3500))
    assert len(text) > 4 * 65_536
    whole = qwen._encoding.encode_ordinary(unicodedata.normalize("NFC", text))
    found = qwen.encode_array(text)
    assert found.dtype == np.uint32
    assert found.tolist() == whole == qwen.encode(text)


@pytest.mark.parametrize("text", ["", "a", " ", "\n"])
def test_ids_of_a_tiny_text_are_an_array_too(qwen: QwenTokenizer, text: str) -> None:
    assert qwen.encode_array(text).dtype == np.uint32
    assert qwen.decode(qwen.encode_array(text).tolist()) == text


ENDLESS = {
    "letters": "a" * 400_000,
    "blanks": " " * 1_000_000,
    "blanks before a control character": " " * 1_000_000 + "\x1c",
    "blanks before a word": " " * 1_000_000 + "word",
    "blanks behind a line": "x\n" + " " * 1_000_000 + "word\n",
    "blanks before a line break": " " * 200_000 + "\n" + " " * 650_000,
    "wide spaces": "。" + "\u3000" * 200_000 + "。",
    "line breaks": "!" + "\n" * 200_000 + "x",
    "ideographs": "".join(chr(0x4E00 + 7919 * n % 20000) for n in range(300_000)),
    "base64": base64.b64encode(random.Random(1).randbytes(600_000)).decode(),
    "dashes": "=-" * 400_000,
    "marks of two classes": "e" + "\u0301\u0316" * 200_000,
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_endless_runs_are_encoded_and_come_back(qwen: QwenTokenizer, kind: str) -> None:
    text = ENDLESS[kind]
    assert qwen.decode(qwen.encode_array(text).tolist()) == nfc(text)


def test_run_of_blanks_beyond_the_stack_has_the_ids_of_its_words(qwen: QwenTokenizer) -> None:
    """Below the limit the whole can still be encoded at once: the run that is taken apart gives the same."""
    for text in (
        "x" + " " * 100_000 + "word",
        "x\n" + " " * 100_000 + "word",
        "x\n" + " " * 100_000,
        " " * 99_999 + "\x1c",
    ):
        assert qwen.encode(text) == qwen._encoding.encode_ordinary(text)


def test_word_of_over_eight_mebibytes_is_refused(qwen: QwenTokenizer) -> None:
    with pytest.raises(SampleError, match="unsplittable"):
        qwen.encode_array("中" * 3_000_000)


def test_form_c_of_long_runs_of_marks_is_the_library_s() -> None:
    random_of = random.Random(2)
    marks = "\u0301\u0316\u0327\u0344\u0f73\u0f71\u05b0\u3099"
    for _ in range(200):
        text = "é" + "".join(random_of.choice(marks) for _ in range(100)) + random_of.choice("aé\u1100\u1161 ")
        assert nfc(text) == unicodedata.normalize("NFC", text)


def test_file_of_as_many_other_ranks_is_refused_unless_named(qwen_path: Path, tmp_path: Path) -> None:
    lines = qwen_path.read_bytes().splitlines()
    first, second = (line.split()[0] for line in lines[300:302])
    lines[300:302] = [second + b" 300", first + b" 301"]
    path = tmp_path / "other.tiktoken"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(RecipeError, match=r"ranks_sha256: [0-9a-f]{64}") as refused:
        build_vocabulary({"name": "emu3", "path": str(path)})
    named = str(refused.value).rpartition(" ")[2]
    vocabulary = build_vocabulary({"name": "emu3", "path": str(path), "ranks_sha256": named})
    assert vocabulary.text.size == NUM_RANKS
    assert build_vocabulary(vocabulary.spec).fingerprint == vocabulary.fingerprint
    assert vocabulary.fingerprint != build_vocabulary({"name": "emu3", "path": str(qwen_path)}).fingerprint


class Wrong:
    """A plug-in that gives ids it does not have."""

    fingerprint, size, settings = "", 10, {}

    def __init__(self, ids: Any) -> None:
        self.ids = ids

    def encode(self, text: str) -> list[int]:
        return self.ids

    def decode(self, ids: Sequence[int]) -> str:
        return ""


@pytest.mark.parametrize(("ids", "told"), [([0, 10], "id 10"), ([-1, 3], "id -1"), ([0.5], "float"), ([[1]], "shape")])
def test_ids_outside_the_vocabulary_end_the_run_and_name_the_tokenizer(ids: Any, told: str) -> None:
    with pytest.raises(RunError, match=f"'theirs' gave .*{told}|'theirs' gave the {told}; .* 0 .. 9"):
        checked_ids(Wrong(ids), "theirs", "text")


def test_ids_of_a_plug_in_without_arrays_become_one() -> None:
    found = checked_ids(Wrong([0, 9]), "theirs", "text")
    assert (found.dtype, found.tolist()) == (np.dtype(np.uint32), [0, 9])
    assert checked_ids(ByteTokenizer(), "bytes", "é").tolist() == [195, 169]
    assert checked_ids(ByteTokenizer(), "bytes", "").tolist() == []


def tokenized(tmp_path: Path, vocabulary: dict[str, Any]) -> Any:
    (tmp_path / "data" / "text").mkdir(parents=True)
    lines = [
        {"id": "plain", "text": "plain"},
        {"id": "endless", "text": "中" * 2_900},
        {"id": "short", "text": "x"},
    ]
    (tmp_path / "data" / "text" / "a.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    filtered = {"filter.text": {}, "sources.text.range_bytes": 2**28, "tokenize.vocabulary": vocabulary}
    recipe = check_recipe(tiny.recipe(tmp_path / "data", str(tmp_path / "root"), filtered, sources=["text"]), "tiny")
    (snapshot,) = Chain(recipe=recipe, options=ChainOptions(quiet=True)).snapshots("tokenize")
    return snapshot


def test_archive_of_ids_outside_the_vocabulary_is_never_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cast(dict[str, str], BUILT_IN), "theirs", f"{__name__}:Wrong")
    with pytest.raises(RunError, match="'theirs' gave the id 12"):
        tokenized(tmp_path, {"name": "theirs", "ids": [3, 12]})
    assert not list((tmp_path / "root" / "tokenize").rglob("*.tar"))


def test_document_that_cannot_be_split_costs_its_row_alone(
    tmp_path: Path, qwen_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_cuts, "LONGEST_PIECE_BYTES", 5_000)
    snapshot = tokenized(tmp_path, {"name": "emu3", "path": str(qwen_path)})
    rows = {
        row["key"]: row for commit in snapshot.commits for row in snapshot.folder.read_rows(commit).rows(named=True)
    }
    assert {key: row["fail_reason"] for key, row in rows.items()} == {
        "plain": None,
        "endless": "unsplittable",
        "short": None,
    }
    assert rows["plain"]["num_text"] == 1
