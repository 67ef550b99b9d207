"""What tensors a safetensors file holds, from its head alone: two short reads, whatever the file weighs.

The head is 8 bytes of length, then JSON: name → dtype, shape and place (safetensors' format, version 1).
"""

from __future__ import annotations

import json

from tokenmill.errors import ManifestError
from tokenmill.manifests.storage import Store

_LONGEST_HEAD = 100_000_000  # safetensors' own limit


def tensor_shapes(store: Store, name: str) -> dict[str, tuple[int, ...]]:
    """Return shapes by tensor; raises ManifestError for another kind of file, StorageError if it isn't there."""
    size = int.from_bytes(store.read_range(name, 0, 8), "little")
    if not 2 <= size <= _LONGEST_HEAD:
        raise ManifestError(f"{name}: not a safetensors file (a head of {size:,} bytes)")
    try:
        head = json.loads(store.read_range(name, 8, size))
        return {
            tensor: tuple(int(length) for length in entry["shape"])
            for tensor, entry in head.items()
            if tensor != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"{name}: not a safetensors file ({error})") from error
