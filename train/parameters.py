"""Whole parameters and optimizer states of a DeepSpeed engine, whichever ZeRO stage scattered them.

A checkpoint holds each parameter whole, in fp32, under its own name. That makes it the same for every ZeRO stage and
number of ranks, so resuming elsewhere needs no conversion; gathering costs three all-reduces of the model a checkpoint.
Adam's first moment, second moment and the master weight of a parameter are its three *parts*.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PARTS = ("weight", "exp_avg", "exp_avg_sq")


def whole(engine: Any, parameter: nn.Parameter, part: str, *, wanted: bool = True) -> Tensor | None:
    """Return one part of a parameter in full, fp32, on the host; every rank must call this in the same order.

    A rank that does not want it takes part and gets None.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if _is_plain(parameter):
        found = parameter.detach() if part == "weight" else engine.basic_optimizer.state[parameter][part]
    elif part == "weight":
        found = safe_get_full_fp32_param(parameter)
    else:
        found = safe_get_full_optimizer_state(parameter, part)
    if not wanted:
        return None
    full: Tensor = found.detach().to("cpu", torch.float32, copy=True)  # the next step changes what it was copied from
    return full.contiguous()


@torch.no_grad()
def set_whole(engine: Any, parameter: nn.Parameter, part: str, value: Tensor) -> None:
    """Put one part of a parameter back; optimizer states must exist (see `wake_optimizer`)."""
    if _is_plain(parameter):
        target = parameter if part == "weight" else engine.basic_optimizer.state[parameter][part]
        target.copy_(value)
    elif hasattr(parameter, "ds_id"):
        _set_partition(parameter, part, value)
    else:
        _set_fragment(parameter, part, value)


def set_step(engine: Any, step: int) -> None:
    """Tell Adam how many steps it has taken (its bias correction depends on it); discarded ones are none."""
    for state in engine.basic_optimizer.state.values():
        state["step"] = torch.full_like(state["step"], step) if torch.is_tensor(state["step"]) else step


def wake_optimizer(engine: Any, batch: Any, micro_steps: int) -> None:
    """Make Adam create its states, by one step at learning rate 0 on a batch that weighs nothing."""
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.0
    for _ in range(micro_steps):
        total, _losses = engine(batch)
        engine.backward(total, scale_wrt_gas=False)
        engine.step()
    link_states(engine)


def link_states(engine: Any) -> None:
    """Let DeepSpeed's accessors find the optimizer states; to be called after a step and before `whole` or `set_whole`.

    DeepSpeed 0.19 links them on its own when the first parameter group has taken its first step, and then believes it
    has linked those of the other groups too.
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "_hp_optimizer_states_linked"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Return a parameter's shape; ZeRO-3 leaves only an empty tensor in its place."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _is_plain(parameter: nn.Parameter) -> bool:
    """Say whether ZeRO has left this parameter alone (stage 0)."""
    return not hasattr(parameter, "ds_id") and not hasattr(parameter, "_hp_mapping")


def _set_fragment(parameter: nn.Parameter, part: str, value: Tensor) -> None:
    """ZeRO 1 and 2: the rank's fragment of the master copy, and the working copy, which every rank has whole."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    value = value.to(parameter.device)
    if part == "weight":
        safe_set_full_fp32_param(parameter, value)
        parameter.data.copy_(value)
    else:
        safe_set_full_optimizer_state(parameter, value, part)


def _set_partition(parameter: Any, part: str, value: Tensor) -> None:
    """ZeRO 3: the rank's partition. DeepSpeed's setter of whole values fails where the ranks don't divide a size."""
    import deepspeed
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    if part == "weight":
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(value)
    size = parameter.ds_tensor.numel()
    rank = torch.distributed.get_rank()
    flat = value.flatten().to(parameter.ds_tensor.device)
    mine = F.pad(flat, (0, max(0, (rank + 1) * size - flat.numel())))[rank * size : (rank + 1) * size]
    if part == "weight":
        safe_set_local_fp32_param(parameter, mine)
    else:
        safe_set_local_optimizer_state(parameter, mine, part)
