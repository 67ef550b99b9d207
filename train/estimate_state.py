"""What DeepSpeed holds of a model on one rank: weights, optimizer states, gradients and buffers, to the byte.

Nothing is measured: these are the rules of DeepSpeed 0.19 (`stage_1_and_2.py`, `stage3.py`), written down as formulas
and held against every tensor that is alive on two real ranks (tests/test_train_estimate.py). Scalars are left out.
Three of its rules cost more than `size ÷ ranks` and are easily forgotten:

* ZeRO 1 and 2 cut each parameter group anywhere, yet keep gradients of whole parameters: every rank that got a corner
  of Emu3's embedding holds 756 M gradients of it. Only where bf16 gradients are summed in fp32 do they keep their part.
* ZeRO 1 has all gradients until they are summed, and keeps them between micro-steps, as plain data parallelism does.
* The bucket in which gradients are summed has 500 M elements whatever the model's size (`reduce_bucket_size`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

from torch import nn

from tokenmill.train.model import parameter_groups

_FLAT_ALIGNMENT = 2  # DeepSpeed's nccl_start_alignment_factor
_DEFAULTS = {
    "reduce_bucket_size": 500_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_live_parameters": 1_000_000_000,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientBytes:
    """Bytes of gradients on a rank's device at four moments.

    Attributes:
        for_step: after the last backward of a step, summed over ranks.
        between_micro_steps: after the others.
        between_steps: what is never given back.
        in_backward: before they are summed, where that waits for the end of backward.
    """

    for_step: int
    between_micro_steps: int
    between_steps: int = 0
    in_backward: int = 0

    @property
    def most(self) -> int:
        return max(self.for_step, self.between_micro_steps, self.between_steps, self.in_backward)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBytes:
    """Bytes on a rank's device, and of the host's memory for that rank.

    Attributes:
        weights: what the forward pass multiplies with, as far as it lies here between steps.
        optimizer: Adam's two moments and the fp32 master weights.
        bucket: in which gradients are summed over ranks, during backward.
        gathered: ZeRO 3 alone: whole weights that are here at most, beside those that always are (an upper bound).
        host: what `offload` keeps in the host's memory, counted nowhere else.
    """

    weights: int
    optimizer: int
    gradients: GradientBytes
    bucket: int
    gathered: int = 0
    host: int = 0


@dataclass(frozen=True, slots=True)
class _Shapes:
    """Sizes of the parameters by group, as the engine gets them."""

    groups: tuple[tuple[int, ...], ...]

    @property
    def all(self) -> list[int]:
        return [size for group in self.groups for size in group]


def state_bytes(model: nn.Module, config: Mapping[str, Any], ranks: int, rank: int = 0) -> StateBytes:
    """Count one rank of `ranks` that trains a model, on any device or none, under a DeepSpeed configuration."""
    groups = [group["params"] for group in parameter_groups(model, 0.0)]
    shapes = _Shapes(tuple(tuple(prod(p.shape) for p in group) for group in groups if group))
    zero = _DEFAULTS | dict(config.get("zero_optimization", {}))
    width = 2 if config.get("bf16", {}).get("enabled") else 4
    summed = 4 if config.get("data_types", {}).get("grad_accum_dtype") == "fp32" else width
    accumulates = config.get("gradient_accumulation_steps", 1) > 1
    if zero["stage"] == 0:
        return _whole(shapes, accumulates=accumulates)
    if zero["stage"] == 3:
        return _partitioned_weights(shapes, zero, ranks, width, summed)
    return _partitioned_optimizer(shapes, zero, (rank, ranks), (width, summed), accumulates=accumulates)


def heaviest_rank(model: nn.Module, config: Mapping[str, Any], ranks: int) -> StateBytes:
    """Count the rank that holds most: under ZeRO 1 and 2 the corners of large matrices make them differ."""
    stage = config.get("zero_optimization", {}).get("stage", 0)
    chosen = range(ranks) if stage in (1, 2) else range(1)
    return max((state_bytes(model, config, ranks, rank) for rank in chosen), key=lambda found: found.gradients.most)


def _whole(shapes: _Shapes, *, accumulates: bool) -> StateBytes:
    """Stage 0: everything, everywhere, in fp32; what is summed over ranks is summed in place."""
    size = 4 * sum(shapes.all)
    gradients = GradientBytes(for_step=size, between_micro_steps=size * accumulates)
    return StateBytes(weights=size, optimizer=2 * size, gradients=gradients, bucket=0)


def _partitioned_optimizer(
    shapes: _Shapes, zero: Mapping[str, Any], place: tuple[int, int], widths: tuple[int, int], *, accumulates: bool
) -> StateBytes:
    """Stages 1 and 2: each group lies flat and is cut into equal parts; a rank has one of each."""
    (rank, ranks), (width, summed) = place, widths
    flat = [_rounded_up(sum(group), _FLAT_ALIGNMENT * ranks) for group in shapes.groups]
    own = sum(size // ranks for size in flat)
    weights, states = sum(flat) * width, own * 12
    bucket = int(zero["reduce_bucket_size"]) * (summed if zero["stage"] == 1 else width)
    bucket *= 2 if zero.get("overlap_comm") else 1
    touched = sum(
        _touched(group, rank * (size // ranks), (rank + 1) * (size // ranks))
        for group, size in zip(shapes.groups, flat, strict=True)
    )
    for_step = own * summed if summed != width else touched * width
    all_of_them = sum(shapes.all) * summed if zero["stage"] == 1 else 0
    host, lasting = 0, 0
    if _offloaded(zero, "optimizer"):
        # Adam's states and fp32 gradients, this rank's weights on their way back, and a parameter's gradient on its way
        # here from the buffer of one on the device; bf16 sums of ZeRO 2 are kept here too, of whole parameters
        lasting = max(shapes.all) * width
        host, states = states + own * (4 + width) + lasting, 0
        if summed == width:
            host += for_step if zero["stage"] == 2 and accumulates else 0
            for_step = 0
    gradients = GradientBytes(
        for_step=for_step + lasting,
        between_micro_steps=((all_of_them or for_step) + lasting) * accumulates,
        between_steps=lasting,
        in_backward=all_of_them + lasting,
    )
    return StateBytes(weights=weights, optimizer=states, gradients=gradients, bucket=bucket, host=host)


def _partitioned_weights(shapes: _Shapes, zero: Mapping[str, Any], ranks: int, width: int, summed: int) -> StateBytes:
    """Stage 3: every parameter is cut into equal parts; small ones stay whole beside theirs."""
    own = sum(-(-size // ranks) for size in shapes.all)
    threshold = int(zero["stage3_param_persistence_threshold"])
    persistent = sum(size for size in shapes.all if size <= threshold)
    at_once = int(zero["stage3_max_live_parameters"]) + int(zero["stage3_prefetch_bucket_size"]) + max(shapes.all)
    gathered = min(sum(shapes.all) - persistent, at_once)
    weights, states, sums, host = own * width, own * 12, own * summed, 0
    if _offloaded(zero, "optimizer"):
        states, sums, host = 0, 0, states + own * 4 + sums  # with fp32 gradients for Adam
    if _offloaded(zero, "param"):
        weights, host = 0, host + weights
    return StateBytes(
        weights=weights + persistent * width,
        optimizer=states,
        gradients=GradientBytes(for_step=sums, between_micro_steps=sums, between_steps=sums),
        bucket=int(zero["reduce_bucket_size"]) * 4,
        gathered=gathered * width,
        host=host,
    )


def _touched(sizes: Sequence[int], start: int, stop: int) -> int:
    """Count the elements of all parameters that reach into [start, stop) of their flat group."""
    ends = list(accumulate(sizes))
    return sum(size for size, end in zip(sizes, ends, strict=True) if end > start and end - size < stop)


def _rounded_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _offloaded(zero: Mapping[str, Any], part: str) -> bool:
    return bool((zero.get(f"offload_{part}") or {}).get("device", "none") != "none")
