"""Moving a training run's state between a DeepSpeed engine and a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import prod
from typing import Any

import torch.distributed as dist
from torch import Tensor

from tokenmill.errors import RecipeError
from tokenmill.faults import fault_point
from tokenmill.train.checkpoints import Checkpoint, RunFolder, shares
from tokenmill.train.model import PackedModel, named_parameters
from tokenmill.train.parameters import PARTS, link_states, set_step, set_whole, whole, whole_shape
from tokenmill.train.world import world

_ARCHITECTURE = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "tie_word_embeddings",
)  # fmt: skip


def save(engine: Any, model: PackedModel, folder: RunFolder, checkpoint: Checkpoint, keep: int) -> None:
    """Write a checkpoint; every rank takes part, and all of them return once it exists.

    `checkpoint` comes without tensors and files; they are filled in here.
    """
    rank, ranks = world()
    link_states(engine)
    sizes = {name: prod(whole_shape(parameter)) for name, parameter in named_parameters(model)}
    split = shares(sizes, ranks)
    mine: dict[str, Tensor] = {}
    for name, parameter in named_parameters(model):
        for part in PARTS:
            tensor = whole(engine, parameter, part)
            if name in split[rank]:
                mine[f"{name}/{part}"] = tensor.contiguous()
    entry = folder.write_tensors(checkpoint.step, rank, mine)
    fault_point("checkpoint:between-files")
    written: list[Any] = [None] * ranks
    dist.all_gather_object(written, (entry, list(mine)))
    if rank == 0:
        tensors = {name: file.name for file, names in written for name in names}
        folder.publish(
            Checkpoint(
                step=checkpoint.step,
                loader=checkpoint.loader,
                model=checkpoint.model,
                vocabulary=checkpoint.vocabulary,
                vision=checkpoint.vision,
                settings=checkpoint.settings,
                tensors=tensors,
                files=tuple(file for file, _ in written),
            )
        )
        folder.prune(keep)
    dist.barrier()


def restore(engine: Any, model: PackedModel, folder: RunFolder, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights and optimizer states into an engine whose optimizer is awake.

    One rank of each machine checks the digests first. Raises ManifestError for damage, RecipeError if the recipe's
    model has another architecture.
    """
    differing = architecture_differences(checkpoint.model, model.causal.config.to_dict())
    if differing:
        raise RecipeError(
            f"train.model: {folder.step_folder(checkpoint.step)} holds another model ({', '.join(differing)}); "
            "give this run another name (train.run)"
        )
    if os.environ.get("LOCAL_RANK", "0") == "0":
        folder.verify(checkpoint)
    dist.barrier()
    with folder.tensors(checkpoint) as tensors:
        for name, parameter in named_parameters(model):
            for part in PARTS:
                set_whole(engine, parameter, part, tensors.read(f"{name}/{part}"))
    set_step(engine, checkpoint.step)


def architecture_differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """Name the sizes in which two models' configurations differ, with both values."""
    return [f"{name} {one.get(name)!r} ≠ {two.get(name)!r}" for name in _ARCHITECTURE if one.get(name) != two.get(name)]
