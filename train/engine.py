"""DeepSpeed, set up so that it runs anywhere: ZeRO 0–3, on CPU without a compiler, one process to many nodes.

Four of its habits are worked around here. On CPU it builds a shared-memory extension at first use (250 s, needs
ninja); the table of what it may build is emptied before, and gloo does the reductions. bf16 casts every buffer, rotary
frequencies too, after which positions beyond a few hundred blur; those are put back in fp32. bf16 sums the gradients of
micro-steps in bf16, which is off by 0.6 % after 16 of them; here they are summed in fp32. And every rank would load
torch's compiler (2.7 s of CPU without cached bytecode) for a function of an optimizer that is not used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from tokenmill.settings_train import TrainSettings
from tokenmill.train.model import PackedModel, parameter_groups
from tokenmill.train.stopping import RENDEZVOUS_VARIABLE


def start_distributed(settings: TrainSettings) -> torch.device:
    """Join the process group that the launcher described in the environment; returns this rank's device."""
    device = _device(settings)
    os.environ["DS_ACCELERATOR"] = device.type
    import deepspeed
    import deepspeed.ops

    if device.type == "cpu":
        vars(deepspeed.ops)["__compatible_ops__"] = {}
    else:
        torch.cuda.set_device(device)
    deepspeed.init_distributed(
        "gloo" if device.type == "cpu" else "nccl",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(seconds=settings.timeout_s),
        init_method=os.environ.get(RENDEZVOUS_VARIABLE, "env://"),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    return device


def start_engine(model: PackedModel, settings: TrainSettings, micro_steps: int) -> Any:
    """Wrap the model in a DeepSpeed engine; its weights are those of rank 0 from here on."""
    import deepspeed

    if "muon" not in str(settings.deepspeed).lower():
        _import_muon()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with _zero_1_as_the_others():
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=parameter_groups(model, settings.weight_decay),
            config=deepspeed_config(settings, micro_steps),
        )
    for name, buffer in model.named_buffers():
        buffer.data = buffers[name].to(buffer.device)
    set_timeouts(settings.timeout_s)
    if settings.offload != "none":
        _let_go_of_sums(engine.optimizer)
    return engine


def _let_go_of_sums(optimizer: Any) -> None:
    """Let ZeRO 1 and 2 drop a step whole: DeepSpeed 0.19 keeps its sums on the device if Adam is on the host (bf16)."""
    if not hasattr(optimizer, "reset_cpu_buffers"):
        return
    reset = optimizer.reset_cpu_buffers

    def reset_sums_too() -> None:
        reset()
        optimizer.averaged_gradients.update(dict.fromkeys(optimizer.averaged_gradients))

    optimizer.reset_cpu_buffers = reset_sums_too


def set_timeouts(seconds: float) -> None:
    """Say how long this rank waits for others, in every group it belongs to.

    DeepSpeed exchanges weights and gradients in a group of its own, which has torch's defaults: ten minutes over NCCL,
    thirty over gloo.
    """
    from torch.distributed import distributed_c10d

    set_timeout = getattr(torch.distributed, "set_timeout", None) or distributed_c10d._set_pg_timeout  # torch 2.11 has
    for group in list(distributed_c10d._world.pg_map):  # the latter alone
        set_timeout(timedelta(seconds=seconds), group)


def deepspeed_config(settings: TrainSettings, micro_steps: int) -> dict[str, Any]:
    """Give the DeepSpeed configuration; `settings.deepspeed` is laid over it, key by key."""
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": settings.clip,
        "steps_per_print": 10**9,
        "zero_optimization": {"stage": settings.zero_stage} | _offload(settings),
        "bf16": {"enabled": settings.precision == "bf16", "check_grad_overflow": True},
        "communication_data_type": "fp32",
        **({"data_types": {"grad_accum_dtype": "fp32"}} if settings.precision == "bf16" and micro_steps > 1 else {}),
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": settings.lr,
                "betas": list(settings.betas),
                "eps": settings.eps,
                "weight_decay": settings.weight_decay,
                "torch_adam": True,
                **({"fused": True} if settings.offload != "none" else {}),
            },
        },
    }
    return _merged(config, settings.deepspeed)


@contextmanager
def _zero_1_as_the_others() -> Iterator[None]:
    """Let ZeRO 1 sum bf16 gradients in fp32 by its own means, which DeepSpeed has and uses for offload alone.

    It would take its `BF16_Optimizer`, which keeps all sums for ever and cannot drop a gradient.
    """
    from deepspeed.runtime.constants import BFLOAT16
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION

    chosen = DeepSpeedEngine._do_optimizer_sanity_check

    def choose(engine: Any, optimizer: Any) -> Any:
        choice = chosen(engine, optimizer)
        return ZERO_OPTIMIZATION if choice == BFLOAT16 else choice

    DeepSpeedEngine._do_optimizer_sanity_check = choose
    try:
        yield
    finally:
        DeepSpeedEngine._do_optimizer_sanity_check = chosen


def set_learning_rate(engine: Any, lr: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = lr


@contextmanager
def discarding(engine: Any) -> Iterator[None]:
    """Make the engine's next `step` drop the gradients and change nothing else; every rank has to.

    With ZeRO that is DeepSpeed's own way with a gradient that is no number, which it is told here of any. It clears
    what the stage has gathered, on the host too if the optimizer is there. Without ZeRO it steps a plain optimizer.
    """
    optimizer = engine.optimizer
    lost = torch.tensor(float("nan"), device=engine.device)
    replaced = {
        "step": lambda: None,
        "scaled_global_norm": lambda norm_type=2: lost,  # ZeRO 1 and 2
        "_get_norm_groups": lambda: [lost],  # ZeRO 3
    }
    if hasattr(optimizer, "overflow"):
        del replaced["step"]
    vars(optimizer).update(replaced)
    try:
        yield
    finally:
        for name in replaced:
            del vars(optimizer)[name]


def has_discarded(engine: Any) -> bool:
    """Say whether DeepSpeed dropped the last step because its gradient was no number."""
    return bool(getattr(engine.optimizer, "overflow", False))


def gradient_norm(engine: Any, settings: TrainSettings) -> float | None:
    """Return the norm of the step's gradient; asked before the last micro-step's `step` without ZeRO, else after."""
    if settings.zero_stage == 0:
        norms = [p.grad.norm() for p in engine.module.parameters() if p.grad is not None]
        return float(torch.stack(norms).norm()) if norms else None
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def _offload(settings: TrainSettings) -> dict[str, Any]:
    """Say what lies in the host's memory; Adam then runs there, as one fused loop of torch's that needs no compiler."""
    place = {"device": "cpu", "pin_memory": _wanted_device(settings) == "cuda"}
    parts = {"none": (), "optimizer": ("optimizer",), "parameters": ("optimizer", "param")}[settings.offload]
    return {f"offload_{part}": place for part in parts}


def _import_muon() -> None:
    """Import Muon, as DeepSpeed's `initialize` does for any optimizer, without what its `@torch.compile` drags in."""
    name = "deepspeed.runtime.zero.muon.original_muon"
    if name not in sys.modules and find_spec(name):
        compiler, torch.compile = torch.compile, lambda function: function  # type: ignore[assignment]
        try:
            import_module(name)
        finally:
            torch.compile = compiler


def _device(settings: TrainSettings) -> torch.device:
    is_cuda = _wanted_device(settings) == "cuda"
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if is_cuda else torch.device("cpu")


def _wanted_device(settings: TrainSettings) -> str:
    if settings.device != "auto":
        return settings.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _merged(config: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(config)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
