"""Safetensors, written tensor by tensor with the digest taken on the way.

`safetensors.torch.save_file` copies everything once more before it writes, with the interpreter's lock held, and the
digest would read the file again. Here memory grows by one block, and training goes on beside it: writing and hashing
let the lock go.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK_BYTES = 16 * 2**20
_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> tuple[str, int]:
    """Write tensors of the CPU to a file; returns its sha256 and its size in bytes."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb", buffering=0) as file:
        for block in _blocks(_ordered(tensors)):
            digest.update(block)
            size += len(block)
            while block:  # an unbuffered write may take less than it was given
                block = block[file.write(block) :]
    return digest.hexdigest(), size


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes that the file will have."""
    return len(_header(_ordered(tensors))) + sum(tensor.nbytes for tensor in tensors.values())


def _ordered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put tensors of wider numbers first, which keeps all of them aligned."""
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))


def _blocks(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    import torch

    yield memoryview(_header(tensors))
    for tensor in tensors.values():
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(data), _BLOCK_BYTES):
            yield data[start : start + _BLOCK_BYTES]


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the length of the description (8 bytes) and the description, padded to a multiple of 8."""
    described, start = {}, 0
    for name, tensor in tensors.items():
        kind = _NAMES[str(tensor.dtype).removeprefix("torch.")]
        described[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, start + tensor.nbytes]}
        start += tensor.nbytes
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
