"""What the forward pass leaves for the backward pass: all of it, what enters each layer, or that in the host's memory.

At 131,072 ids the 32 layers of Emu3's 8B keep 34 GB of bf16 for their inputs alone. In the host's memory they cost
the device nothing, and the way there or back (at 25 GB/s 43 ms a layer) lies beside the arithmetic of a layer (at 400
TFLOP/s 140 ms of matrices forward, three times that backward), on a stream of its own.

torch's own `save_on_cpu` would do the same on the stream of the arithmetic, and move the output layer's gradient too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

SMALLEST_BYTES = 2**16
"""What is smaller stays on the device: moving it costs more than it brings."""


Checkpointing = Literal["none", "device", "cpu"]


def keep_activations(causal: Any, where: Checkpointing) -> HostActivations | None:
    """Let a causal model keep only the inputs of its layers; returns what holds them, if on the host."""
    if where == "none":
        return None
    causal.activation_checkpointing_enable({"use_reentrant": False})
    if where == "device":
        return None
    host = HostActivations()
    decoder = causal.get_decoder()
    decoder.forward = host.around(decoder.forward)
    return host


@dataclass(slots=True, eq=False)
class _Kept:
    """One tensor in the host's memory, on its way back to the device if `back` is there."""

    host: Tensor
    device: torch.device
    back: Tensor | None = None
    arrived: Any = None  # a CUDA event


class HostActivations:
    """Holds what a module saves for its backward pass in the host's memory, pinned where the device is a GPU.

    What is fetched last went first, so with each tensor the one before it is sent for.

    Attributes:
        moved_bytes: of all tensors so far.
    """

    def __init__(self) -> None:
        self.moved_bytes = 0
        self._kept: list[_Kept] = []
        self._stream: Any = None

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Give a forward pass that saves here."""

        def holding(*args: Any, **kwargs: Any) -> Any:
            self._kept.clear()  # of a forward pass that had no backward
            with saved_tensors_hooks(self._keep, self._fetch):
                return forward(*args, **kwargs)

        return holding

    def _keep(self, tensor: Tensor) -> Tensor | _Kept:
        is_weight = tensor.is_leaf and tensor.requires_grad
        if is_weight or tensor.nbytes < SMALLEST_BYTES:
            return tensor
        host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        if tensor.is_cuda:
            self._send(tensor, host)
        else:
            host.copy_(tensor)
        self.moved_bytes += tensor.nbytes
        kept = _Kept(host, tensor.device)
        self._kept.append(kept)
        return kept

    def _fetch(self, kept: Tensor | _Kept) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        back = self._back(kept)
        if kept in self._kept:
            del self._kept[self._kept.index(kept) :]
        if self._kept and kept.device.type == "cuda":
            self._send_back(self._kept[-1])
        return back

    def _back(self, kept: _Kept) -> Tensor:
        if kept.device.type != "cuda":
            return kept.host
        if kept.back is None:
            self._send_back(kept)
        back, kept.back = kept.back, None
        assert back is not None
        current = torch.cuda.current_stream(kept.device)
        current.wait_event(kept.arrived)
        back.record_stream(current)
        return back

    def _send(self, tensor: Tensor, host: Tensor) -> None:
        if self._stream is None:
            self._stream = torch.cuda.Stream(tensor.device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(self._stream):
            host.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._stream)  # its memory is not given away before it has left

    def _send_back(self, kept: _Kept) -> None:
        with torch.cuda.stream(self._stream):
            kept.back = kept.host.to(kept.device, non_blocking=True)
            kept.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            kept.arrived.record(self._stream)
