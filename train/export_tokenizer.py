"""The vocabulary as a tokenizer that transformers opens: text as tokenmill encodes it, markers and codes by name.

Ids are those of training. What differs: transformers reads a marker out of a text that spells it, where tokenmill takes
it for ordinary characters; so prompts of strangers should not go through this tokenizer unchecked. A text tokenizer of
a plug-in has no such form, and its exports come without one.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from typing import Any

from tokenmill.tokenize.text_bytes import ByteTokenizer
from tokenmill.tokenize.text_huggingface import HuggingFaceTokenizer
from tokenmill.tokenize.text_qwen import SPLIT, QwenTokenizer
from tokenmill.tokenize.token_meanings import byte_letters
from tokenmill.tokenize.vocabulary import Vocabulary
from tokenmill.train.merges import merges_of

log = logging.getLogger(__name__)

Json = dict[str, Any]
_PROBE = "A red circle, 2 < 3: déjà-vu?\n\nI'M 64*64 。 end"


def tokenizer_files(vocabulary: Vocabulary, context: int) -> dict[str, bytes]:
    """Return `tokenizer.json` and `tokenizer_config.json`; nothing where ids would not be those of training."""
    description = _text_half(vocabulary)
    if description is None:
        return {}
    names = _add_names(description, vocabulary)
    data = json.dumps(description, ensure_ascii=False).encode()
    fault = _fault(data, vocabulary, names)
    if fault:
        log.warning("the export has no tokenizer: %s", fault)
        return {}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": names[getattr(vocabulary, role)] for role in ("pad", "bos", "eos")},
    }
    return {"tokenizer.json": data, "tokenizer_config.json": (json.dumps(config, indent=1) + "\n").encode()}


def _text_half(vocabulary: Vocabulary) -> Json | None:
    """Return a `tokenizer.json` of the text ids alone."""
    text = vocabulary.text
    if isinstance(text, ByteTokenizer):
        return _byte_level(dict(byte_letters()), [], None)
    if isinstance(text, QwenTokenizer):
        tokens = [text.token_bytes(index) for index in range(text.size)]
        letters = {byte: letter for letter, byte in byte_letters().items()}
        names = ["".join(letters[byte] for byte in token) for token in tokens]
        merges = [[names[left], names[right]] for left, right in merges_of(tokens)]
        return _byte_level({name: index for index, name in enumerate(names)}, merges, SPLIT)
    if isinstance(text, HuggingFaceTokenizer):
        return {**copy.deepcopy(dict(text.description)), "post_processor": None, "truncation": None, "padding": None}
    return None


def _byte_level(vocab: Mapping[str, int], merges: list[list[str]], split: str | None) -> Json:
    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    pattern = {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": vocab, "merges": merges}  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "NFC"} if split else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [pattern, letters]} if split else letters,
        "post_processor": None,
        "decoder": letters,
        "model": model,
    }


def _add_names(description: Json, vocabulary: Vocabulary) -> dict[int, str]:
    """Put markers and codes into a description; returns their names by id.

    Where the text tokenizer has a token of a marker's name, the marker is called `<|document …|>`.
    """
    table = description["model"].get("vocab") or {}
    taken = set(table) if isinstance(table, Mapping) else {row[0] for row in table}
    taken |= {one["content"] for one in description.get("added_tokens") or ()}
    names = {}
    for index in range(vocabulary.text.size, vocabulary.size):
        name = vocabulary.describe(index)
        names[index] = name.replace("<|", "<|document ", 1) if name in taken else name
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": index, "content": name, **flags} for index, name in names.items()]
    description["added_tokens"] = [*(description.get("added_tokens") or ()), *added]
    return names


def _fault(data: bytes, vocabulary: Vocabulary, names: Mapping[int, str]) -> str | None:
    """Compare what the file gives with the vocabulary; returns what differs."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(data.decode())
    except Exception as error:  # the library raises nothing more exact
        return f"the file cannot be read back ({error})"
    for index, name in names.items():
        if tokenizer.token_to_id(name) != index:
            return f"{name} would be id {tokenizer.token_to_id(name)} in place of {index}"
    found, expected = tokenizer.encode(_PROBE, add_special_tokens=False).ids, vocabulary.encode(_PROBE).tolist()
    return None if found == expected else f"a text has ids {found[:8]} in place of {expected[:8]}"
