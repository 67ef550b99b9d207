"""Hugging Face tokenizers of every kind, trained here: ids, special tokens, cuts, and files that are none."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tokenmill.errors import RecipeError, SampleError
from tokenmill.tokenize.text_cuts import BLANK_CUTS, cut
from tokenmill.tokenize.text_huggingface import HuggingFaceTokenizer
from tokenmill.tokenize.text_huggingface_file import splits_before_blanks
from tokenmill.tokenize.text_qwen import SPLIT
from tokenmill.tokenize.vocabulary import build_vocabulary

CORPUS = [
    "The licence of 12 apples, isn't it?\n\n  def f(x): return x",
    "Zwölf Äpfel 中文字。 <s> foo bar <unk> a b c d",
] * 20
SPECIAL = ["<unk>", "<s>", "</s>", "[CLS]", "<|endoftext|>"]
KINDS = "a", "é", "1", " ", "\t", "\n", "!", "'", "。", "\u0301", "<s>"


def byte_level() -> Tokenizer:
    """GPT-2's kind, with a template that adds special tokens and a length to which it cuts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.enable_truncation(8)
    return tokenizer


def qwen_like() -> Tokenizer:
    """Qwen 2's kind: special tokens behind the table, between others that are ordinary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    tokenizer.add_special_tokens(["<s>", "<|endoftext|>"])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=[*SPECIAL, "<S>"]))
    return tokenizer


def unigram() -> Tokenizer:
    """SentencePiece's kind, whose table holds the special tokens with the best score of all."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


def whole_text() -> Tokenizer:
    """Llama 2's kind: a prefix, and no splitting at all."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=150, special_tokens=SPECIAL, max_token_length=8)
    )
    return tokenizer


def word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=SPECIAL))
    return tokenizer


Made = Callable[[], Tokenizer]
ALL: list[Made] = [byte_level, qwen_like, word_piece, unigram, whole_text, word_level]
CUT: list[Made] = [byte_level, qwen_like, word_piece, unigram, word_level]
LOSSLESS: list[Made] = [byte_level, qwen_like]


def saved(made: Made, folder: Path) -> tuple[HuggingFaceTokenizer, Tokenizer]:
    tokenizer = made()
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    return HuggingFaceTokenizer(str(folder)), tokenizer


def library_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize("made", ALL)
def test_text_without_special_tokens_has_the_ids_of_the_library(made: Made, tmp_path: Path) -> None:
    ours, library = saved(made, tmp_path)
    for text in ("The 12 apples: isn't <tool> it?\n\n  中文字。", "", " ", "Zwölf", "☃ \u0301 e\u0301", "a" * 200):
        found = ours.encode_array(text)
        assert found.dtype == np.uint32
        assert found.tolist() == library_ids(library, text) == ours.encode(text)
    assert ours.size == 1 + max(library.get_vocab(with_added_tokens=True).values())


@pytest.mark.parametrize("made", ALL)
def test_surface_form_of_a_special_token_stays_ordinary_text(made: Made, tmp_path: Path) -> None:
    ours, library = saved(made, tmp_path)
    special = {one["id"]: one["content"] for one in json.loads(library.to_str())["added_tokens"] if one["special"]}
    assert special
    unknown = library.token_to_id("<unk>")
    for surface in special.values():
        for text in (surface, f"a{surface}b", f" {surface} ", surface * 3, surface.replace("<", "＜").upper()):
            found = ours.encode(text)
            assert not set(found) & (set(special) - {unknown})
            assert max(found, default=0) < ours.size
            if made in LOSSLESS:
                assert ours.decode(found) == text
    assert ours.decode(list(special)[-1:]) == list(special.values())[-1]


@pytest.mark.parametrize("made", CUT)
def test_ids_of_pieces_are_those_of_the_whole(made: Made, tmp_path: Path) -> None:
    _, library = saved(made, tmp_path)
    assert splits_before_blanks(json.loads(library.to_str()))
    random_of = random.Random(7)
    texts = ["".join(letters) for letters in product(KINDS, repeat=3)]
    texts += ["".join(random_of.choice(KINDS) * random_of.choice((1, 1, 2, 9)) for _ in range(60)) for _ in range(200)]
    cuts = 0
    for text in texts:
        pieces = list(cut(text, BLANK_CUTS, 2))
        cuts += len(pieces) - 1
        assert [index for piece in pieces for index in library_ids(library, piece)] == library_ids(library, text), text
    assert cuts > 500


def test_long_text_is_the_library_s_in_pieces(tmp_path: Path) -> None:
    ours, library = saved(qwen_like, tmp_path)
    text = "The licence of 12 apples, isn't it?\n\n  中文字。 " * 6000
    assert len(text) > 3 * 65_536
    assert ours.encode(text) == library_ids(library, text)


@pytest.mark.parametrize(
    ("made", "change"),
    [
        (whole_text, None),
        (unigram, lambda t: setattr(t, "normalizer", normalizers.Replace(Regex(" {2,}"), " "))),
        (unigram, lambda t: setattr(t, "normalizer", normalizers.Strip())),
        (unigram, lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Metaspace(split=False))),
        (qwen_like, lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Split(Regex(r"\S+ "), "isolated"))),
        (qwen_like, lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Split(" ", "merged_with_previous"))),
        (qwen_like, lambda t: t.add_tokens([AddedToken("x y", special=False)])),
        (qwen_like, lambda t: t.add_tokens([AddedToken("<z>", special=False, rstrip=True)])),
    ],
)
def test_tokenizer_that_may_look_beyond_a_blank_is_never_cut(made: Made, change: Callable[[Any], Any] | None) -> None:
    tokenizer = made()
    if change is not None:
        assert splits_before_blanks(json.loads(tokenizer.to_str()))
        change(tokenizer)
    assert not splits_before_blanks(json.loads(tokenizer.to_str()))


def test_text_that_cannot_be_cut_is_encoded_up_to_a_limit(tmp_path: Path) -> None:
    ours, library = saved(whole_text, tmp_path)
    text = "Zwölf apples " * 8000
    assert ours.encode(text) == library_ids(library, text)
    with pytest.raises(SampleError, match="unsplittable"):
        ours.encode("apples " * 1_300_000)


def test_vocabulary_of_a_recipe_rebuilds_and_its_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    ours, _ = saved(qwen_like, tmp_path / "one")
    vocabulary = build_vocabulary({"name": "huggingface", "path": str(tmp_path / "one"), "codebook_size": 64})
    assert (vocabulary.pad, vocabulary.vision_base) == (ours.size, ours.size + 10)
    assert vocabulary.encode("<|endoftext|>").max() < ours.size
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    file = str(tmp_path / "two" / "tokenizer.json")
    assert build_vocabulary(vocabulary.spec | {"path": file}).fingerprint == vocabulary.fingerprint
    saved(byte_level, tmp_path / "two")
    assert build_vocabulary(vocabulary.spec | {"path": file}).fingerprint != vocabulary.fingerprint


def test_folder_of_a_slow_tokenizer_is_converted(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    ours = HuggingFaceTokenizer(str(tmp_path))
    assert ours.encode("A cats [CLS]") == [5, 6, 7, 1, 1, 1]
    assert ours.size == len(words)


@pytest.mark.parametrize("content", ["no json", "[]", "{}", '{"model": {}}', '{"model": {"type": "Odd", "vocab": {}}}'])
def test_file_that_is_no_tokenizer_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(RecipeError, match=str(tmp_path)):
        HuggingFaceTokenizer(str(tmp_path))


def test_what_is_not_there_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="no such folder"):
        HuggingFaceTokenizer(str(tmp_path / "absent"))
    with pytest.raises(RecipeError, match=str(tmp_path)):
        HuggingFaceTokenizer(str(tmp_path))
    with pytest.raises(RecipeError, match=r"org/name.*not in the local cache.*folder"):
        HuggingFaceTokenizer("org/name", local_files_only=True)
    with pytest.raises(RecipeError, match="does not take"):
        build_vocabulary({"name": "huggingface", "path": "x", "revison": "main"})
