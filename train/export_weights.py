"""A checkpoint's weights as transformers' safetensors shards, made one at a time.

Nothing is ever in memory but one shard and the tensor that is read: an 8.5 B model exports in 5 GB beside whatever else
a rank holds, from and to any store. fp32 is what was trained; bf16 is half of it and what most inference wants.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenmill.errors import ManifestError
from tokenmill.manifests.storage import Store
from tokenmill.settings_model import ExportSettings
from tokenmill.train.stored_tensors import StoredTensors

INDEX = "model.safetensors.index.json"
_BYTES = {"fp32": 4, "bf16": 2}


def write_weights(
    tensors: StoredTensors, model: Any, store: Store, target: str, settings: ExportSettings
) -> dict[str, str]:
    """Write a model's weights below `target`; returns file → hex sha256.

    `model` has the shapes and no values (device `meta`). Raises ManifestError if the checkpoint has other tensors.
    """
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        if tensors.shape(f"{name}/weight") != tuple(parameter.shape):
            found = tensors.shape(f"{name}/weight")
            raise ManifestError(f"the checkpoint's {name} is {found}, the model's {tuple(parameter.shape)}")
    width = _BYTES[settings.precision]
    groups = list(grouped({name: size * width for name, size in sizes.items()}, settings.shard_bytes))
    files = shard_names(len(groups))
    digests = {}
    for file, names in zip(files, groups, strict=True):
        digests[file] = _write_shard(tensors, names, store, f"{target}/{file}", settings.precision)
    if len(groups) > 1:
        total = {"total_parameters": sum(sizes.values()), "total_size": sum(sizes.values()) * width}
        weight_map = {name: file for file, names in zip(files, groups, strict=True) for name in names}
        data = (json.dumps({"metadata": total, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n").encode()
        store.put(f"{target}/{INDEX}", data)
        digests[INDEX] = hashlib.sha256(data).hexdigest()
    return digests


def shard_names(count: int) -> list[str]:
    """Name the files of so many shards, as transformers looks for them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def grouped(sizes: dict[str, int], limit: int) -> Iterator[Sequence[str]]:
    """Cut names, in their order, into groups of at most `limit` bytes; what is larger alone stands alone."""
    group: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if group and filled + size > limit:
            yield group
            group, filled = [], 0
        group.append(name)
        filled += size
    if group:
        yield group


def _write_shard(tensors: StoredTensors, names: Sequence[str], store: Store, path: str, precision: str) -> str:
    import torch
    from safetensors.torch import save_file

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    held = {name: tensors.read(f"{name}/weight").to(dtype) for name in names}
    with store.staging(path.rpartition("/")[0]) as staged:
        save_file(held, str(staged), metadata={"format": "pt"})
        held.clear()
        digest = _sha256(staged)
        store.put_file(path, staged)
    return digest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
