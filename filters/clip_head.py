"""A small network on CLIP embeddings: one linear layer or a few, told apart by the shapes in its file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RunError
from tokenmill.filters.weights_file import read_tensors, weights_digest

Activation = Literal["none", "relu", "gelu"]


@dataclass(frozen=True, kw_only=True)
class Head:
    """Linear layers in their order, with an activation between them."""

    layers: tuple[tuple[Any, Any], ...]  # torch: weight (out, in), bias (out)
    activation: Activation = "none"

    @property
    def num_outputs(self) -> int:
        return int(self.layers[-1][0].shape[0])

    def __call__(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (n, outputs) in float32 on the CPU, on one thread."""
        import torch
        from torch.nn import functional

        between = {"none": torch.nn.Identity(), "relu": torch.nn.ReLU(), "gelu": torch.nn.GELU()}[self.activation]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                values = torch.from_numpy(embeddings)
                for number, (weight, bias) in enumerate(self.layers):
                    values = functional.linear(between(values) if number else values, weight, bias)
                found: NDArray[np.float32] = values.numpy()
        finally:
            torch.set_num_threads(threads)
        return found


def read_head(path: Path, dimension: int, activation: Activation = "none") -> Head:
    """Read a head for embeddings of `dimension` numbers.

    Raises:
        RunError: the file is unreadable, holds other things than linear layers, or they don't fit each other.
    """
    return _read(path, weights_digest(path), dimension, activation)


@cache
def _read(path: Path, digest: str, dimension: int, activation: Activation) -> Head:
    tensors = read_tensors(path)
    names = sorted({name.rpartition(".")[0] for name in tensors}, key=_natural)
    layers = []
    for name in names:
        prefix = f"{name}." if name else ""
        weight, bias = tensors.get(f"{prefix}weight"), tensors.get(f"{prefix}bias")
        if weight is None or weight.ndim != 2 or (bias is not None and tuple(bias.shape) != weight.shape[:1]):
            shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in sorted(tensors.items())[:6])
            raise RunError(f"{path}: not a head of linear layers; it holds {shapes}")
        layers.append((weight.float(), None if bias is None else bias.float()))
    _check_chain(path, [tuple(weight.shape) for weight, _ in layers], dimension)
    return Head(layers=tuple(layers), activation=activation)


def _check_chain(path: Path, shapes: Sequence[tuple[int, ...]], dimension: int) -> None:
    expected = dimension
    for out, into in shapes:
        if into != expected:
            sizes = " → ".join(f"{shape[1]}×{shape[0]}" for shape in shapes)
            raise RunError(f"{path}: a head of {sizes}; the embeddings have {dimension} numbers")
        expected = out


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
