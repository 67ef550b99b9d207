"""A Hugging Face tokenizer as the text half of a compact vocabulary: `{name: huggingface, path: FOLDER-or-hub-name}`.

Ids are those of the tokenizer, gaps and special tokens included, so that embeddings of a model trained with it fit; the
markers of documents come behind them. No text gives a special id (text_huggingface_file.py). A document is encoded in
pieces where the tokenizer certainly splits in front of a blank, else as a whole: up to 8 MiB, which take 1 GB.

What a tokenizer loses it loses here as well: the unknown id, letter case, accents, runs of blanks.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError, SampleError
from tokenmill.tokenize.loading import is_path
from tokenmill.tokenize.text_cuts import BLANK_CUTS, check_length, cut
from tokenmill.tokenize.text_huggingface_file import ordinary, special_ids, splits_before_blanks, unknown_id

FILE = "tokenizer.json"
_RULES = b"huggingface 1 "


class HuggingFaceTokenizer:
    """A fast tokenizer by folder, `tokenizer.json` or hub name, of which special tokens are never read from text.

    Args:
        path: a folder, a file, or the name of a repository on the hub.
        revision: of the repository on the hub.
        local_files_only: look for a repository in the local cache alone.

    Raises:
        RecipeError: there is none of that name, the hub does not answer, or it is no fast tokenizer.
    """

    def __init__(self, path: str, revision: str | None = None, local_files_only: bool = False) -> None:
        self.settings: Mapping[str, Any] = {
            "path": path,
            **({"revision": revision} if revision else {}),
            **({"local_files_only": True} if local_files_only else {}),
        }
        self._source = read_tokenizer(path, revision, local_files_only)
        description = _described(self._source, path)
        self.description: Mapping[str, Any] = description
        try:
            self._encoder = _tokenizer(json.dumps(ordinary(description)))
            self.size = 1 + max(_tokenizer(self._source).get_vocab(with_added_tokens=True).values())
        except Exception as error:  # the library raises nothing more exact
            raise RecipeError(f"{path}: not a tokenizer that can be used: {error}") from error
        self._pieces = splits_before_blanks(description)
        self._forbidden = np.zeros(self.size, dtype=np.bool_)
        self._forbidden[sorted(special_ids(description) - {unknown_id(description)})] = True
        content = {name: description.get(name) for name in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
        digest = hashlib.sha256(_RULES + json.dumps(content, sort_keys=True).encode())
        self.fingerprint = digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> NDArray[np.uint32]:
        """Give the ids of a text; raises SampleError `unsplittable` for over 8 MiB that cannot be cut."""
        ids = array("I")
        text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair is no text to the library
        pieces: Iterable[str] = cut(text, BLANK_CUTS) if self._pieces else (text,)
        for piece in pieces:
            check_length(piece)
            (encoding,) = self._encoder.encode_batch_fast([piece], add_special_tokens=False)
            ids.extend(encoding.ids)
        return self._checked(np.frombuffer(ids, dtype=np.uint32) if ids else np.zeros(0, np.uint32))

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._decoder.decode([int(index) for index in ids], skip_special_tokens=False)
        return text

    def _checked(self, ids: NDArray[np.uint32]) -> NDArray[np.uint32]:
        if len(ids) and self._forbidden[ids].any():
            found = int(ids[self._forbidden[ids]][0])
            raise SampleError("special_token", f"the text gives the special id {found} however it is told")
        return ids

    @cached_property
    def _decoder(self) -> Any:
        return _tokenizer(self._source)


def _tokenizer(content: str) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _described(content: str, path: str) -> dict[str, Any]:
    try:
        description = json.loads(content)
    except ValueError as error:
        raise RecipeError(f"{path}: {FILE} is not JSON: {error}") from error
    if not isinstance(description, dict) or not isinstance(description.get("model"), dict):
        raise RecipeError(f"{path}: {FILE} describes no tokenizer: it has no model")
    return description


def read_tokenizer(path: str, revision: str | None = None, local_files_only: bool = False) -> str:
    """Return the content of a tokenizer's `tokenizer.json`; one that has none is converted by transformers.

    Raises RecipeError where there is none, or the hub does not answer.
    """
    local = Path(path)
    file = local / FILE if local.is_dir() else local
    try:
        if file.is_file():
            return file.read_text(encoding="utf-8")
        if local.is_dir():
            return _converted(path, local_files_only=True)
        if is_path(path) or local.suffix == ".json":
            raise RecipeError(f"{path}: there is no such folder or file")
        return _from_hub(path, revision, local_files_only)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read: {_first_line(error)}") from error


def _from_hub(name: str, revision: str | None, local_files_only: bool) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, FILE, revision=revision, local_files_only=local_files_only)).read_text(
            encoding="utf-8"
        )
    except LocalEntryNotFoundError as error:
        how = "is not in the local cache" if local_files_only else "the hub does not answer, and the cache has none"
        raise RecipeError(f"{name}: {how}; name a folder that holds {FILE}") from error
    except EntryNotFoundError:
        return _converted(name, revision=revision, local_files_only=local_files_only)


def _converted(path: str, **options: Any) -> str:
    """Let transformers make a fast tokenizer of the files of a slow one; runs no code of the repository."""
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **options)
        content: str = slow.backend_tokenizer.to_str()
    except (AttributeError, ImportError, KeyError, TypeError) as error:
        raise RecipeError(f"{path}: has no {FILE}, nor can one be made: {_first_line(error)}") from error
    return content


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
