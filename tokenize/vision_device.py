"""What of a vision tokenizer hangs on its device: how much runs at once, how precisely, and how pictures get there.

On CUDA the next part is copied while the current one is encoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from tokenmill.errors import RecipeError
from tokenmill.tokenize.vision import Pixels

FRAME_PIXELS = 1 << 20
"""Pixels of frames that go through the 2-d networks at a time, but at least one frame: 16 of 256², one of 720x1280."""


def frames_at_once(number: int, pixels: int) -> int:
    """Return how many of a batch's frames run at once, in parts of one size: another size would round differently."""
    most = max(1, min(number, FRAME_PIXELS // pixels))
    return next(size for size in range(most, 0, -1) if number % size == 0)


def whole_float32(device: torch.device) -> AbstractContextManager[None]:
    """Keep cuDNN from rounding what is float32 to TF32's 10 bits, which it does by default."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def opened_device(name: str, where: str) -> torch.device:
    """Return a device by name; raises RecipeError, naming `where`, for one that is none or is not there."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RecipeError(f"{where}: device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def on_device(parts: Iterable[Pixels], device: torch.device) -> Iterator[torch.Tensor]:
    """Yield the parts as tensors of bytes on their device, in order.

    CUDA: out of pinned memory, on a stream of its own, one part ahead of the current stream, which may use what comes.
    """
    if device.type != "cuda":
        for part in parts:
            yield _tensor(part).to(device)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    coming: tuple[torch.Tensor, torch.cuda.Event] | None = None
    for part in parts:
        sent = _sent(part, device, stream)
        if coming is not None:
            yield _arrived(*coming)
        coming = sent
    if coming is not None:
        yield _arrived(*coming)


def _sent(part: Pixels, device: torch.device, stream: torch.cuda.Stream) -> tuple[torch.Tensor, torch.cuda.Event]:
    pinned = _tensor(part).pin_memory()
    with torch.cuda.stream(stream):
        return pinned.to(device, non_blocking=True), stream.record_event()


def _arrived(tensor: torch.Tensor, event: torch.cuda.Event) -> torch.Tensor:
    current = torch.cuda.current_stream(tensor.device)
    current.wait_event(event)
    tensor.record_stream(current)  # its memory may not go to another copy before the encoder is through with it
    return tensor


def _tensor(part: Pixels) -> torch.Tensor:
    return torch.from_numpy(np.require(part, requirements=("C", "W")))  # turned and read-only pictures are copied
