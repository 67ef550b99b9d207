"""Assembled ids against the released Emu3 table, written out by hand (EMU3.md §3, §4).

No list here was printed by the code under test. Ids of text are ranks looked up in `qwen.tiktoken` by their bytes
(digits 0..9 are 15..24, `*` is 9); merges were worked out on paper from those ranks.
"""

# ruff: noqa: RUF005  (text on one line, the vision string on the next)
from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tokenmill.errors import RecipeError
from tokenmill.tokenize.documents import TextSegment, VisionSegment, assemble, assembled_length
from tokenmill.tokenize.text_qwen import QwenTokenizer
from tokenmill.tokenize.vocabulary import Vocabulary, build_vocabulary, byte_vocabulary, emu3_vocabulary

BOS, EOS, EOL, EOF = 151849, 151850, 151846, 151847
SOT, SOV, EOV = 151851, 151852, 151853

SYSTEM = [2610, 525, 264, 10950, 17847, 13]  # You| are| a| helpful| assistant|.
USER = [13872, 25, 220]  # " USER"|:|" "
ASSISTANT = [13, 35560, 3846, 2821, 25]  # .|" ASS"|IST|ANT|:

# text → ids between BOS and EOS
TEXTS: list[tuple[str, list[int]]] = [
    ("?\n\n", [1939]),
    ("foo.bar/baz", [7975, 22001, 3470, 1370]),
    ("I'M", [40, 27603]),
    ("。\n", [8997]),
    ("Hello world!", [9707, 1879, 0]),
    ("你好，世界", [108386, 3837, 99489]),
    ("cafe\u0301", [924, 58858]),  # NFC first; then by rank: ca 924, é 963, fé 58858 before caf 68796
    ("64", [21, 19]),  # every digit by itself
    ("<|endoftext|>", [27, 91, 8691, 723, 427, 91, 29]),  # a user's text never holds a marker
    ("", []),
]


def text(start: int, end: int, role: str = "caption", variant: int = 0) -> TextSegment:
    return TextSegment(start, end, role, variant=variant)  # type: ignore[arg-type]


# name, texts of the sample, segments, codes, template, variant, ids
RED = ["a red circle"]  # 64 2518 12671
DOCUMENTS: list[tuple[str, list[str], list, list[int], str, int, list[int]]] = [
    (
        "image generation, rows end in EOL, the last one too",
        RED,
        [text(0, 3), VisionSegment(1, 2, 3, 0)],
        [0, 1, 2, 3, 4, 32767],
        "generation",
        0,
        [BOS, 64, 2518, 12671, SOV, 17, 9, 18, SOT]
        + [151854, 151855, 151856, EOL, 151857, 151858, 184621, EOL, EOF, EOV, EOS],
    ),
    (
        "image generation, height stands first",
        RED,
        [text(0, 3), VisionSegment(1, 3, 2, 0)],
        [0, 1, 2, 3, 4, 5],
        "generation",
        0,
        [BOS, 64, 2518, 12671, SOV, 18, 9, 17, SOT]
        + [151854, 151855, EOL, 151856, 151857, EOL, 151858, 151859, EOL, EOF, EOV, EOS],
    ),
    (
        "image understanding, the caption behind EOV",
        RED,
        [text(0, 3), VisionSegment(1, 1, 2, 0)],
        [7, 9],
        "understanding",
        0,
        [BOS, SOV, 16, 9, 17, SOT, 151861, 151863, EOL, EOF, EOV, 64, 2518, 12671, EOS],
    ),
    (
        "unconditional, the caption dropped",
        RED,
        [text(0, 3), VisionSegment(1, 1, 1, 0)],
        [100],
        "unconditional",
        0,
        [BOS, SOV, 16, 9, 16, SOT, 151954, EOL, EOF, EOV, EOS],
    ),
    (
        "generation with an empty caption equals the unconditional one",
        [""],
        [text(0, 0), VisionSegment(1, 1, 1, 0)],
        [100],
        "generation",
        0,
        [BOS, SOV, 16, 9, 16, SOT, 151954, EOL, EOF, EOV, EOS],
    ),
    (
        "language leaves pictures out",
        RED,
        [text(0, 3), VisionSegment(1, 1, 1, 0)],
        [100],
        "language",
        0,
        [BOS, 64, 2518, 12671, EOS],
    ),
    (
        "wide grid, meta of two digits",
        [""],
        [text(0, 0), VisionSegment(1, 1, 12, 0)],
        [0] * 12,
        "generation",
        0,
        [BOS, SOV, 16, 9, 16, 17, SOT, *[151854] * 12, EOL, EOF, EOV, EOS],
    ),
    (
        "first caption of two",
        ["cat", "a cat"],
        [text(0, 1), text(1, 3, variant=1), VisionSegment(1, 1, 1, 0)],
        [1],
        "generation",
        0,
        [BOS, 4616, SOV, 16, 9, 16, SOT, 151855, EOL, EOF, EOV, EOS],
    ),
    (
        "second caption of two",
        ["cat", "a cat"],
        [text(0, 1), text(1, 3, variant=1), VisionSegment(1, 1, 1, 0)],
        [1],
        "generation",
        1,
        [BOS, 64, 8251, SOV, 16, 9, 16, SOT, 151855, EOL, EOF, EOV, EOS],
    ),
    (
        "clip of two latent frames, EOF behind each",
        ["cat"],
        [text(0, 1), VisionSegment(2, 1, 2, 0, fps=24.0, seconds=0.5)],
        [1, 2, 3, 4],
        "generation",
        0,
        [BOS, 4616, SOV, 16, 9, 17, 220, 17, 19, 43428, 220, 15, 13, 20, 82, SOT]
        + [151855, 151856, EOL, EOF, 151857, 151858, EOL, EOF, EOV, EOS],
    ),
    (
        "clip of one latent frame still says its rate, in %g",
        [],
        [VisionSegment(1, 1, 1, 0, fps=24000 / 1001, seconds=5.0)],
        [3],
        "unconditional",
        0,
        [BOS, SOV, 16, 9, 16, 220, 17, 18, 13, 24, 22, 21, 43428, 220, 20, 82, SOT, 151857, EOL, EOF, EOV, EOS],
    ),
    (
        "clip of two rows and two frames, understanding",
        ["cat"],
        [text(0, 1), VisionSegment(2, 2, 1, 0, fps=8, seconds=1)],
        [0, 1, 2, 3],
        "understanding",
        0,
        [BOS, SOV, 17, 9, 16, 220, 23, 43428, 220, 16, 82, SOT]
        + [151854, EOL, 151855, EOL, EOF, 151856, EOL, 151857, EOL, EOF, EOV, 4616, EOS],
    ),
    (
        "chat with a picture",
        ["What is this?", "a cat"],
        [VisionSegment(1, 1, 1, 0), text(0, 4, "user"), text(4, 6, "assistant")],
        [5],
        "chat",
        0,
        [BOS, *SYSTEM, *USER, SOV, 16, 9, 16, SOT, 151859, EOL, EOF, EOV, 3838, 374, 419, 30]
        + [*ASSISTANT, 64, 8251, EOS],
    ),
    (
        "chat of two turns, an EOS behind each answer",
        ["What is this?", "cat", "Is it red", "No"],
        [
            VisionSegment(1, 1, 1, 0),
            text(0, 4, "user"),
            text(4, 5, "assistant"),
            text(5, 8, "user"),
            text(8, 9, "assistant"),
        ],
        [5],
        "chat",
        0,
        [BOS, *SYSTEM, *USER, SOV, 16, 9, 16, SOT, 151859, EOL, EOF, EOV, 3838, 374, 419, 30, *ASSISTANT, 4616, EOS]
        + [*USER, 3872, 432, 2518, *ASSISTANT, 2753, EOS],
    ),
    (
        "chat with a system message of its own",
        ["Hello", "What", "Yes"],
        [text(0, 1, "system"), text(1, 2, "user"), text(2, 3, "assistant")],
        [],
        "chat",
        0,
        [BOS, 9707, *USER, 3838, *ASSISTANT, 9454, EOS],
    ),
    (
        "interleaved page keeps its order",
        ["a cat", " two"],
        [
            text(0, 2, "body"),
            VisionSegment(1, 1, 1, 0),
            text(2, 3, "body"),
            VisionSegment(1, 1, 2, 1),
        ],
        [8, 1, 2],
        "interleaved",
        0,
        [BOS, 64, 8251, SOV, 16, 9, 16, SOT, 151862, EOL, EOF, EOV, 1378]
        + [SOV, 16, 9, 17, SOT, 151855, 151856, EOL, EOF, EOV, EOS],
    ),
    (
        "understanding of an interleaved page: pictures, then text",
        ["a cat", " two"],
        [text(0, 2, "body"), VisionSegment(1, 1, 1, 0), text(2, 3, "body")],
        [8],
        "understanding",
        0,
        [BOS, SOV, 16, 9, 16, SOT, 151862, EOL, EOF, EOV, 64, 8251, 1378, EOS],
    ),
]


@pytest.fixture(scope="module")
def qwen_path() -> Path:
    """A `qwen.tiktoken`, from TOKENMILL_QWEN_TIKTOKEN or the dashscope package, which carries one."""
    if named := os.environ.get("TOKENMILL_QWEN_TIKTOKEN"):
        return Path(named)
    spec = find_spec("dashscope")
    if spec is None or spec.origin is None:
        pytest.skip("no qwen.tiktoken: set TOKENMILL_QWEN_TIKTOKEN or install dashscope")
    return Path(spec.origin).parent / "resources" / "qwen.tiktoken"


@pytest.fixture(scope="module")
def emu3(qwen_path: Path) -> Vocabulary:
    return emu3_vocabulary(qwen_path)


@pytest.mark.parametrize(("words", "expected"), TEXTS, ids=[repr(words) for words, _ in TEXTS])
def test_emu3_language_document_equals_hand_written_ids(emu3: Vocabulary, words: str, expected: list[int]) -> None:
    ids = np.array(emu3.text.encode(words), np.uint32)
    segments = [TextSegment(0, len(expected), "body")]
    document = assemble(segments, ids, np.zeros(0, np.uint16), "language", emu3)
    assert document.ids.tolist() == [BOS, *expected, EOS]


@pytest.mark.parametrize(
    ("texts", "segments", "codes", "template", "variant", "expected"),
    [case[1:] for case in DOCUMENTS],
    ids=[case[0] for case in DOCUMENTS],
)
def test_emu3_document_equals_hand_written_ids(
    emu3: Vocabulary, texts: list[str], segments: list, codes: list[int], template: str, variant: int, expected: list
) -> None:
    ids = np.array([index for words in texts for index in emu3.text.encode(words)], np.uint32)
    document = assemble(segments, ids, np.array(codes, np.uint16), template, emu3, variant)
    assert document.ids.tolist() == expected
    assert assembled_length(segments, template, emu3, variant) == len(expected)


def test_emu3_names_of_ids_equal_the_released_table(emu3: Vocabulary) -> None:
    table = {
        0: "!",
        4616: "cat",
        151643: "<|endoftext|>",
        151644: "<|im_start|>",
        151645: "<|im_end|>",
        151646: "<|extra_0|>",
        151846: "<|extra_200|>",
        151847: "<|extra_201|>",
        151848: "<|extra_202|>",
        151849: "<|extra_203|>",
        151850: "<|extra_204|>",
        151851: "<|image token|>",
        151852: "<|image start|>",
        151853: "<|image end|>",
        151854: "<|visual token 000000|>",
        151977: "<|visual token 000123|>",
        184621: "<|visual token 032767|>",
    }
    assert {index: emu3.describe(index) for index in table} == table
    assert emu3.size == 184_622
    assert emu3.pad == 151_643


def test_emu3_vocabulary_rebuilt_from_its_spec_has_the_same_fingerprint(emu3: Vocabulary) -> None:
    assert build_vocabulary(emu3.spec).fingerprint == emu3.fingerprint
    assert build_vocabulary(emu3.spec | {"codebook_size": 512}).fingerprint != emu3.fingerprint


@pytest.mark.parametrize("words", ["Ünïcode, 世界!  two  spaces\n\n\tand\ttabs", "def f(x):\n    return x**2\n", "🎨🖼️"])
def test_qwen_decode_of_encode_returns_the_text(emu3: Vocabulary, words: str) -> None:
    assert emu3.text.decode(emu3.text.encode(words)) == words


def test_qwen_file_of_another_model_is_refused(qwen_path: Path, tmp_path: Path) -> None:
    short = tmp_path / "other.tiktoken"
    short.write_bytes(b"\n".join(qwen_path.read_bytes().splitlines()[:1000]))
    with pytest.raises(RecipeError, match="1000 ranks"):
        QwenTokenizer(short)


@pytest.mark.parametrize("content", [b"not base64!? x\n", b"IQ== 0 1\n", b""])
def test_qwen_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.tiktoken"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match="tiktoken"):
        QwenTokenizer(path)


def test_qwen_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read"):
        QwenTokenizer(tmp_path / "absent.tiktoken")


# The compact layout: 256 bytes, then pad im_start im_end eol eof bos eos sot sov eov = 256 .. 265, codes from 266.
COMPACT: list[tuple[str, list, list[int], str, list[int]]] = [
    ("Hi", [text(0, 2, "body")], [], "language", [261, 72, 105, 262]),
    ("é", [text(0, 2, "body")], [], "language", [261, 195, 169, 262]),
    (
        "Hi",
        [text(0, 2), VisionSegment(1, 1, 2, 0)],
        [0, 15],
        "generation",
        [261, 72, 105, 264, 49, 42, 50, 263, 266, 281, 259, 260, 265, 262],
    ),
    (
        "Hi",
        [text(0, 2), VisionSegment(1, 1, 2, 0)],
        [0, 15],
        "understanding",
        [261, 264, 49, 42, 50, 263, 266, 281, 259, 260, 265, 72, 105, 262],
    ),
    (
        "",
        [VisionSegment(2, 1, 1, 0, fps=8, seconds=1)],
        [3, 4],
        "unconditional",
        [261, 264, 49, 42, 49, 32, 56, 102, 112, 115, 32, 49, 115, 263, 269, 259, 260, 270, 259, 260, 265, 262],
    ),
]


@pytest.mark.parametrize(("words", "segments", "codes", "template", "expected"), COMPACT)
def test_compact_document_equals_hand_written_ids(
    words: str, segments: list, codes: list[int], template: str, expected: list[int]
) -> None:
    vocabulary = byte_vocabulary(16)
    ids = np.array(vocabulary.text.encode(words), np.uint32)
    document = assemble(segments, ids, np.array(codes, np.uint16), template, vocabulary)
    assert document.ids.tolist() == expected
    assert assembled_length(segments, template, vocabulary) == len(expected)
