"""Moving a training run's state between a DeepSpeed engine and a checkpoint.

What a rank has to write is first copied to its host memory (12 bytes a parameter ÷ ranks); `checkpoint_saver.py` then
writes it, in the background or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tokenmill.errors import ManifestError, RecipeError
from tokenmill.manifests.records import FileEntry
from tokenmill.train.checkpoint_tensors import Tensors
from tokenmill.train.checkpoints import Checkpoint, RunFolder, shares
from tokenmill.train.model import PackedModel, named_parameters
from tokenmill.train.parameters import PARTS, link_states, set_step, set_whole, whole, whole_shape
from tokenmill.train.world import world

_ARCHITECTURE = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "tie_word_embeddings",
)  # fmt: skip


def copied_share(engine: Any, model: PackedModel) -> dict[str, Tensor]:
    """Copy this rank's share of weights and optimizer states to the host, by name; every rank takes part."""
    rank, ranks = world()
    link_states(engine)
    sizes = {name: prod(whole_shape(parameter)) for name, parameter in named_parameters(model)}
    mine = set(shares(sizes, ranks)[rank])
    copied: dict[str, Tensor] = {}
    for name, parameter in named_parameters(model):
        for part in PARTS:
            tensor = whole(engine, parameter, part, wanted=name in mine)
            if tensor is not None:
                copied[f"{name}/{part}"] = tensor
    return copied


def restore(engine: Any, model: PackedModel, folder: RunFolder, checkpoint: Checkpoint, adam_steps: int) -> None:
    """Put a checkpoint's weights and optimizer states into an engine whose optimizer is awake.

    Every file is fetched and checked by one rank, which hands its tensors to the others, so a checkpoint is read once
    however many ranks there are. Raises on every rank alike: ManifestError for damage, before anything is changed,
    RecipeError if the recipe's model has another architecture.
    """
    differing = architecture_differences(checkpoint.model, model.causal.config.to_dict())
    if differing:
        raise RecipeError(
            f"train.model: {folder.step_folder(checkpoint.step)} holds another model ({', '.join(differing)}); "
            "give this run another name (train.run)"
        )
    _take(engine, model, folder, checkpoint, PARTS)
    set_step(engine, adam_steps)


def restore_weights(engine: Any, model: PackedModel, folder: RunFolder, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights alone into an engine, in fp32: from a module in bf16 it would have rounded ones.

    Raises ManifestError as `restore`.
    """
    _take(engine, model, folder, checkpoint, PARTS[:1])


def _take(engine: Any, model: PackedModel, folder: RunFolder, checkpoint: Checkpoint, parts: Sequence[str]) -> None:
    shapes = {f"{name}/{part}": whole_shape(p) for name, p in named_parameters(model) for part in parts}
    rank, ranks = world()
    entries = [entry for number, entry in enumerate(checkpoint.files) if number % ranks == rank]
    owners = {entry.name: number % ranks for number, entry in enumerate(checkpoint.files)}
    with _checked(folder, checkpoint, entries, shapes) as tensors:
        for name, parameter in named_parameters(model):
            for part in parts:
                key = f"{name}/{part}"
                owner = owners[checkpoint.tensors[key]]
                value = tensors.read(key) if owner == rank else torch.empty(shapes[key])
                value = value.to(engine.device)
                dist.broadcast(value, src=owner)
                set_whole(engine, parameter, part, value)


@contextmanager
def _checked(
    folder: RunFolder, checkpoint: Checkpoint, mine: Sequence[FileEntry], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Tensors]:
    """Open and check this rank's files; raises ManifestError on all ranks if any of them finds a fault."""
    missing = [name for name in shapes if name not in checkpoint.tensors]
    fault = f"{folder.step_folder(checkpoint.step)}: has no tensor {missing[0]}" if missing else None
    with ExitStack() as stack:
        try:
            tensors = stack.enter_context(folder.tensors(checkpoint, mine, check=True))
        except ManifestError as error:
            fault = str(error)
        faults: list[str | None] = [None] * world()[1]
        dist.all_gather_object(faults, fault)
        found = next((told for told in faults if told is not None), None)
        if found is not None:
            raise ManifestError(found)
        yield tensors


def architecture_differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """Name the sizes in which two models' configurations differ, with both values."""
    return [f"{name} {one.get(name)!r} ≠ {two.get(name)!r}" for name in _ARCHITECTURE if one.get(name) != two.get(name)]
