"""What a `tokenizer.json` says, and how it has to be changed so that text never gives a special id.

The library's own switch (`encode_special_tokens`) only stops its search for special tokens; a Unigram model whose table
holds `<s>` finds it again by itself, and so does a word-level one. So the special tokens are taken out of the search,
and their names in the model's table are replaced by ones that no text has: the ids stay, `<s>` is three characters.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

_LOCAL_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer", "Precompiled", "Nmt"}
_LOCAL_SPLITTERS = {"Digits", "Punctuation"}
_BLANK_SPLITTERS = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer"}
# The alternatives of the expressions of GPT-2, cl100k (Llama 3, Qwen) and o200k: none holds a blank behind anything
# but a space, nor looks at what stands behind a word.
_ENDINGS = r"'s|'t|'re|'ve|'m|'ll|'d"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ALTERNATIVES = {
    *_ENDINGS.split("|"),
    "'(?:[sdmt]|ll|ve|re)",
    "'(?i:[sdmt]|ll|ve|re)",
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    f"(?i:{_ENDINGS})",
    r" ?\p{L}+",
    r" ?\p{N}+",
    r" ?[^\s\p{L}\p{N}]+",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?i:{_ENDINGS})?",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?i:{_ENDINGS})?",
    r"\p{N}",
    r"\p{N}+",
    r"\p{N}{1,3}",
    r"\d",
    r"\s*[\r\n]+",
    r"\s*[\r\n]",
    r"\s+(?!\S)",
    r"\s+",
    r"\s",
}


def special_ids(description: Mapping[str, Any]) -> set[int]:
    """Return the ids that the file calls special, but for single bytes, which are how unknown letters are told."""
    return {one["id"] for one in _special(description)}


def unknown_id(description: Mapping[str, Any]) -> int | None:
    """Return the id that stands for what the model does not know."""
    model = description["model"]
    if isinstance(model.get("vocab"), list):
        unknown: int | None = model.get("unk_id")
    else:
        unknown = model.get("vocab", {}).get(model.get("unk_token"))
    return unknown


def ordinary(description: Mapping[str, Any]) -> Json:
    """Return the file for encoding: no special token, no template, nothing cut or padded."""
    changed: Json = {**copy.deepcopy(dict(description)), "truncation": None, "padding": None, "post_processor": None}
    hidden = {one["content"]: f"\uffff{one['id']}\uffff" for one in _special(description)}
    kept = [one for one in changed.get("added_tokens") or () if one["content"] not in hidden]
    model = changed["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in model["vocab"]]
        _append(model["vocab"], kept)
    else:
        model["vocab"] = {hidden.get(piece, piece): index for piece, index in model["vocab"].items()}
        for one in kept:
            model["vocab"].setdefault(one["content"], one["id"])
        model["unk_token"] = hidden.get(model.get("unk_token"), model.get("unk_token"))
    if model.get("merges"):
        model["merges"] = [merge for merge in model["merges"] if not _makes(merge, hidden)]
    return changed | {"added_tokens": kept}


def splits_before_blanks(description: Mapping[str, Any]) -> bool:
    """Say whether ids certainly split between a letter, number or punctuation mark and a blank.

    Only what is known to do so counts; a `False` costs memory for long documents and nothing else.
    """
    tokens = description.get("added_tokens") or ()
    special = {one["id"] for one in _special(description)}
    holding = [
        one for one in tokens if one["id"] not in special and (one.get("rstrip") or re.search(r"\S ", one["content"]))
    ]
    if holding or description["model"].get("dropout"):
        return False
    normalizers = _steps(description.get("normalizer"), "normalizers")
    if not all(_is_local(step) for step in normalizers):
        return False
    for step in _steps(description.get("pre_tokenizer"), "pretokenizers"):
        if _parts_blanks(step):
            return True
        if step["type"] not in _LOCAL_SPLITTERS:
            return False
    return False


def _special(description: Mapping[str, Any]) -> list[Json]:
    tokens = description.get("added_tokens") or ()
    return [one for one in tokens if one["special"] and not _BYTE.fullmatch(one["content"])]


def _append(vocab: list[list[Any]], tokens: list[Json]) -> None:
    """Give tokens that the file adds to a Unigram table their own places behind it."""
    lowest = min(score for _, score in vocab)
    known = {piece for piece, _ in vocab}
    for one in sorted(tokens, key=lambda token: int(token["id"])):
        if one["content"] not in known:
            vocab.extend([f"\uffff{index}\uffff", lowest] for index in range(len(vocab), one["id"]))
            vocab.append([one["content"], lowest])


def _makes(merge: Any, hidden: Mapping[str, str]) -> bool:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left in hidden or right in hidden or left + right in hidden


def _steps(step: Mapping[str, Any] | None, name: str) -> list[Any]:
    if step is None:
        return []
    return [inner for one in step[name] for inner in _steps(one, name)] if step["type"] == "Sequence" else [step]


def _is_local(step: Mapping[str, Any]) -> bool:
    """Say whether a normalizer looks at one character (and its marks) at a time."""
    if step["type"] == "Replace":
        return len(step["pattern"].get("String", "")) == 1
    return step["type"] in _LOCAL_NORMALIZERS


def _parts_blanks(step: Mapping[str, Any]) -> bool:
    """Say whether a splitter parts a blank from what stands before it."""
    kind = step["type"]
    if kind == "ByteLevel":
        return bool(step.get("use_regex", True))
    if kind == "Metaspace":
        return bool(step.get("split", True))
    if kind == "CharDelimiterSplit":
        return bool(step["delimiter"] == " ")
    if kind == "Split":
        expression, behavior = step["pattern"].get("Regex"), step["behavior"]
        if expression is None:
            return step["pattern"].get("String") == " " and behavior in ("Removed", "Isolated", "MergedWithNext")
        # Inverted and removed, or isolated: either way what matches is a word.
        whole = (behavior, step.get("invert", False)) in (("Isolated", False), ("Removed", True), ("Isolated", True))
        return whole and set(_alternatives(expression)) <= _ALTERNATIVES
    return kind in _BLANK_SPLITTERS


def _alternatives(expression: str) -> list[str]:
    """Split a regular expression at the bars outside of all brackets."""
    found, depth, start = [], 0, 0
    for place, one in enumerate(expression):
        if place and expression[place - 1] == "\\":
            continue
        depth += (one in "([") - (one in ")]")
        if one == "|" and depth == 0:
            found.append(expression[start:place])
            start = place + 1
    return [*found, expression[start:]]
