"""Tensors of safetensors files where they lie, in any store, one at a time, by requests for its bytes alone.

A checkpoint's files hold optimizer states beside the weights, three times what an export or a fresh run needs, and are
tens of gigabytes: copying one to a local disk first would cost its size there. The format is a length, a JSON header
and the tensors' bytes one after the other (https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenmill.errors import ManifestError
from tokenmill.manifests.storage import Store
from tokenmill.train.checkpoints import Checkpoint, RunFolder

_LENGTH_BYTES = 8
_LARGEST_HEADER = 100_000_000  # as the library has it


class StoredTensors:
    """The tensors of one checkpoint, by name `<parameter>/<part>`; every read is a request for its bytes alone."""

    def __init__(self, folder: RunFolder, checkpoint: Checkpoint) -> None:
        self._store, self._files = folder.store, checkpoint.tensors
        self._folder = folder.step_folder(checkpoint.step)
        self._headers: dict[str, Mapping[str, Any]] = {}

    def read(self, name: str) -> Any:
        """Return one tensor; raises ManifestError if the checkpoint has none of that name or its file is damaged."""
        import torch

        path, start, entry = self._place(name)
        begin, end = entry["data_offsets"]
        dtype = _dtype(entry["dtype"], path)
        if begin == end:
            return torch.empty(entry["shape"], dtype=dtype)
        data = bytearray(self._store.read_range(path, start + begin, end - begin))
        return torch.frombuffer(data, dtype=dtype).reshape(entry["shape"])

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it; raises as `read`."""
        return tuple(self._place(name)[2]["shape"])

    def _place(self, name: str) -> tuple[str, int, Mapping[str, Any]]:
        """Return a tensor's file, where in it the data begin, and what its header says of the tensor."""
        file = self._files.get(name)
        if file is None:
            raise ManifestError(f"{self._folder}: has no tensor {name}")
        path = file if "://" in file else f"{self._folder}/{file}"  # elsewhere: train.checkpoints
        if file not in self._headers:
            self._headers[file] = read_header(self._store, path)
        header = self._headers[file]
        if name not in header:
            raise ManifestError(f"{path}: has no tensor {name}, though its record says so")
        return path, header[""], header[name]


def read_header(store: Store, path: str) -> Mapping[str, Any]:
    """Return what a safetensors file says of its tensors by name, and under "" where their bytes begin.

    Raises ManifestError for a file of another kind.
    """
    length = int.from_bytes(store.read_range(path, 0, _LENGTH_BYTES), "little")
    if length > _LARGEST_HEADER:
        raise ManifestError(f"{path}: not a safetensors file (a header of {length:,} bytes)")
    try:
        header = json.loads(store.read_range(path, _LENGTH_BYTES, length))
        return {**{name: entry for name, entry in header.items() if name != "__metadata__"}, "": _LENGTH_BYTES + length}
    except (ValueError, AttributeError) as error:
        raise ManifestError(f"{path}: not a safetensors file ({error})") from error


def _dtype(name: str, path: str) -> Any:
    import torch

    known = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    if name not in known:
        raise ManifestError(f"{path}: holds a tensor of type {name}; there are {', '.join(known)}")
    return known[name]
