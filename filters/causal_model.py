"""A causal language model of Hugging Face as a judge of texts; safetensors only, and no code of its folder runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError
from tokenmill.filters.steady import steady

_PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model")
_CHARS_PER_TOKEN = 64  # of a longer text no more is tokenized, so a megabyte of it costs no second


class CausalModel:
    """Tokenizer and weights, each loaded when first needed; see `Perplexity` for the arguments."""

    def __init__(self, model: str, *, revision: str | None, max_tokens: int, dtype: str, device: str) -> None:
        self._name, self._revision = model, revision
        self._max_tokens, self._dtype, self._device = max_tokens, dtype, device

    @cached_property
    def digest(self) -> str:
        state = hashlib.sha256()
        for path in self._files:
            with path.open("rb") as file:
                state.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return state.hexdigest()

    def prepared(self, text: str) -> NDArray[np.int64]:
        """Return a text's ids, behind the token that begins a text where the tokenizer has one."""
        cut = text[: self._max_tokens * _CHARS_PER_TOKEN]
        ids = self._tokenizer(cut, add_special_tokens=False, verbose=False)["input_ids"]
        begin = self._tokenizer.bos_token_id
        return np.asarray([*([] if begin is None else [begin]), *ids][: self._max_tokens], dtype=np.int64)

    def log_probabilities(self, batch: Sequence[NDArray[np.int64]]) -> list[tuple[float, int]]:
        """Return sums of natural log probabilities of all tokens but the first, and their number."""
        import torch

        longest = max(map(len, batch), default=0)
        if longest < 2:
            return [(0.0, 0) for _ in batch]
        ids_BT = torch.zeros((len(batch), longest), dtype=torch.int64)
        mask_BT = torch.zeros((len(batch), longest), dtype=torch.int64)
        for row, ids in enumerate(batch):
            ids_BT[row, : len(ids)] = torch.from_numpy(ids)
            mask_BT[row, : len(ids)] = 1
        mask_BT[:, 0] = 1  # a text of no tokens must not be all padding: attention would have nothing to look at
        return self._sums(ids_BT, mask_BT, [len(ids) for ids in batch])

    def _sums(self, ids_BT: Any, mask_BT: Any, lengths: Sequence[int]) -> list[tuple[float, int]]:
        import torch

        device = self._model.device
        with steady(device):
            logits_BTV = self._model(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device)).logits
            losses = []
            for row, length in enumerate(lengths):
                number = max(0, length - 1)
                wanted = ids_BT[row, 1 : number + 1].to(device)
                loss = torch.nn.functional.cross_entropy(logits_BTV[row, :number].float(), wanted, reduction="sum")
                losses.append((-float(loss) if number else 0.0, number))
        return losses

    @cached_property
    def _folder(self) -> Path:
        folder = Path(self._name).expanduser()
        if folder.is_dir():
            return folder
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(self._name, revision=self._revision, allow_patterns=list(_PATTERNS)))
        except Exception as error:
            raise self._wrong("is no folder, and the hub did not give it", error) from error

    @cached_property
    def _files(self) -> list[Path]:
        found = sorted({path for pattern in _PATTERNS for path in self._folder.glob(pattern)})
        if not any(path.suffix == ".safetensors" for path in found):
            raise self._wrong("holds no *.safetensors; nothing else is loaded")
        if not any(path.name == "config.json" for path in found):
            raise self._wrong("holds no config.json")
        return found

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        _ = self._files
        try:
            return AutoTokenizer.from_pretrained(self._folder, trust_remote_code=False)
        except Exception as error:
            raise self._wrong("has a tokenizer that cannot be loaded", error) from error

    @cached_property
    def _model(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        _ = self._files
        device = self._device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            model = AutoModelForCausalLM.from_pretrained(
                self._folder, dtype=getattr(torch, self._dtype), use_safetensors=True, trust_remote_code=False
            )
        except Exception as error:
            raise self._wrong("cannot be loaded", error) from error
        return model.eval().to(device)

    def _wrong(self, what: str, error: Exception | None = None) -> RecipeError:
        why = f": {' '.join(str(error).split())[:300]}" if error else ""
        return RecipeError(f"scorer 'perplexity': model {self._name!r} {what}{why}")
