"""Models compute the same bits every time: on one CPU thread (two round differently), or on CUDA without TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def steady(device: Any) -> Iterator[None]:
    """Compute without gradients, the same bits every time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), _exact_cuda(device):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _exact_cuda(device: Any) -> Iterator[None]:
    import torch

    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
