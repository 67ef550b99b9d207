"""A loaded CLIP: prepared pictures and captions to unit vectors, a batch once for all scorers that share it.

An embedding depends in its last bits (1e-7) on who else is in its batch, because matrix products of another height are
summed up in another order. So what is kept for the next scorer is a *batch*, known by the digests of its pictures in
their order: the values of a scorer are those it would have computed alone, whatever was kept, and byte-identical
for any number of workers, any mix of scorers, and after a kill. Scorers behind the same gate share; one
behind another gate computes its own batches.

Everything runs on one CPU thread (two round differently) or on CUDA without TF32.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RunError
from tokenmill.filters.clip_import import open_clip, quiet
from tokenmill.filters.clip_pixels import ClipPixels
from tokenmill.filters.clip_source import CONFIG, ClipSource
from tokenmill.filters.steady import steady
from tokenmill.filters.weights_file import HUB, read_tensors

Precision = Literal["fp32", "bf16", "fp16"]
Embeddings = NDArray[np.float32]  # (n, dimension), rows of length 1
MOST_CHARACTERS = 2048  # of a caption: 77 tokens are some 300; the tokenizer needs quadratic time for one long word
_KEPT_ROWS = 4096  # 12 MB at 768 numbers; a chunk is 64
_WORDS_KEPT = 1_000_000  # of the tokenizer's own memory, which nothing else bounds

_models: dict[tuple[str, str, str], ClipModel] = {}
_lock = threading.Lock()


def shared_model(source: ClipSource, precision: Precision, device: str) -> ClipModel:
    """Return the one loaded model of this process for these weights, precision and device; raises RunError."""
    key = (source.digest, precision, device)
    with _lock:
        if key not in _models:
            _models[key] = ClipModel(source, precision, device)
        return _models[key]


class ClipModel:
    """A model in evaluation on its device."""

    def __init__(self, source: ClipSource, precision: Precision, device: str) -> None:
        import torch

        self._device = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self._source = source
        self._model = _load(source, precision, self._device)
        shape = (1, 3, 1, 1)
        preprocessing = source.preprocessing
        self._mean = torch.tensor(preprocessing["mean"], device=self._device).reshape(shape)
        self._std = torch.tensor(preprocessing["std"], device=self._device).reshape(shape)
        self._tokenizer: Any = None
        self._kept: OrderedDict[bytes, Embeddings] = OrderedDict()
        self._lock = threading.Lock()
        self.num_batches = 0  # of pictures that went through the network: for tests and logs

    def embed_pictures(self, batch: Sequence[ClipPixels]) -> Embeddings:
        """Return (n, dimension); one batch through the network, unless the same one has just been."""
        key = b"".join(one.digest for one in batch)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._pictures(np.stack([one.pixels for one in batch]))
                while sum(map(len, self._kept.values())) > max(_KEPT_ROWS, len(batch)):
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def embed_captions(self, captions: Sequence[str]) -> Embeddings:
        """Return (n, dimension); captions longer than the network's context are cut as open_clip does."""
        with self._lock, steady(self._device):
            tokens = self._tokens([" ".join(caption.split())[:MOST_CHARACTERS] for caption in captions])
            return _unit(self._model.encode_text(tokens.to(self._device)))

    def _pictures(self, pixels_BHWC: NDArray[np.uint8]) -> Embeddings:
        import torch

        self.num_batches += 1
        with steady(self._device):
            pixels_BCHW = torch.from_numpy(pixels_BHWC).to(self._device).permute(0, 3, 1, 2).float().div_(255)
            scaled = ((pixels_BCHW - self._mean) / self._std).contiguous().to(self._dtype)
            return _unit(self._model.encode_image(scaled))

    def _tokens(self, captions: Sequence[str]) -> Any:
        if self._tokenizer is None:
            name, folder = self._source.model, self._source.folder
            local = folder is not None and not name.startswith(HUB)
            with quiet():
                self._tokenizer = open_clip().get_tokenizer(f"local-dir:{folder}" if local else name)
        words = getattr(self._tokenizer, "cache", None)
        if isinstance(words, dict) and len(words) > _WORDS_KEPT:
            words.clear()
        return self._tokenizer(list(captions))


def _load(source: ClipSource, precision: Precision, device: Any) -> Any:
    """Build the network and fill it; raises RunError naming the file that does not fit."""
    with quiet():
        name = f"local-dir:{source.folder}" if source.folder is not None else source.model
        try:
            model = open_clip().create_model(
                name, load_weights=False, pretrained_text=False, precision=precision, device=device,
                force_quick_gelu=source.quick_gelu,
            )  # fmt: skip
        except (TypeError, ValueError, KeyError, RuntimeError, AssertionError) as error:
            where = source.folder / CONFIG if source.folder is not None else name
            why = " ".join(str(error).split())[:200]
            raise RunError(f"{where}: open_clip cannot build this model: {why}") from error
        _fill(model, source)
    return model.eval().requires_grad_(False)


def _fill(model: Any, source: ClipSource) -> None:
    """Load the weights, every one of them: open_clip itself would stretch positions of another picture size."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    path = source.weights
    state = convert_state_dict(model, read_tensors(path))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    state.pop("text.transformer.embeddings.position_ids", None)  # older transformers saved them
    for name in ("logit_scale", "logit_bias"):
        if name in state and getattr(model, name, None) is not None:
            state[name] = state[name].reshape(getattr(model, name).shape)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        why = "; ".join(line.strip() for line in str(error).splitlines()[1:3])[:300]
        raise RunError(f"{path}: not the weights of {source.model}: {why}") from error


def _unit(features: Any) -> Embeddings:
    from torch.nn.functional import normalize

    unit: Embeddings = normalize(features.float(), dim=-1).cpu().numpy()
    return unit
