"""Where a run's first weights come from: drawn, given in transformers' format, or those of another run.

A run that has a checkpoint of its own needs none of them: of the others only the model's shape is asked then, so that a
folder that was moved, or a run that is gone, stops nobody.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from tokenmill.errors import ManifestError, RecipeError
from tokenmill.settings_train import TrainSettings
from tokenmill.tokenize.vocabulary import Vocabulary
from tokenmill.train.checkpoints import Checkpoint, RunFolder
from tokenmill.train.model import PackedModel, named_parameters
from tokenmill.train.same_vocabulary import described, is_same_vocabulary
from tokenmill.train.saving import architecture_differences
from tokenmill.train.stored_tensors import StoredTensors

log = logging.getLogger(__name__)

RECORD = "start.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstWeights:
    """The checkpoint a run's model is like, and whether its weights are still to be taken from it."""

    folder: RunFolder
    checkpoint: Checkpoint
    is_other: bool

    @property
    def name(self) -> str:
        """`RUN@STEP`, as a recipe names it."""
        return f"{self.folder.run}@{self.checkpoint.step}"


def find_first_weights(
    folder: RunFolder, settings: TrainSettings, vocabulary: Vocabulary, vision: Mapping[str, Any] | None = None
) -> FirstWeights | None:
    """Return the run's own newest checkpoint, else the one it starts from; None where weights are drawn or given.

    `vision` is the vision tokenizer of the plan; another one than that of the run it starts from is warned of: whether
    its codes mean the same cannot be told from what it is called.
    Raises RecipeError if there is no such run or step, or it was trained on another vocabulary; or if the run was begun
    from another given model than the recipe names.
    """
    own = _own(folder)
    if own is not None:
        _check_given(own, settings)
        return FirstWeights(folder=folder, checkpoint=own, is_other=False)
    if settings.start_from is None:
        return None
    found = _named(folder, settings.start_from)
    _check_vocabulary(found, vocabulary)
    before = found.checkpoint.vision
    if before and vision and dict(before) != dict(vision):
        log.warning("%s was trained with vision tokenizer %s, the plan has %s: their codes have to be the same",
                    found.name, dict(before), dict(vision))  # fmt: skip
    return found


def shape_to_take(first: FirstWeights | None, settings: TrainSettings) -> Mapping[str, Any] | None:
    """Return the configuration of the model to be like, where the recipe may leave that to a checkpoint."""
    if first is None or (settings.start_from is None and settings.model.from_path is None):
        return None
    return first.checkpoint.model


def take_weights(first: FirstWeights, model: PackedModel, folder: RunFolder) -> None:
    """Put the weights of another run into rank 0's model, of which an engine gives all ranks theirs; note whose.

    Rank 0 checks the digests first. Raises ManifestError for damage, RecipeError if the model has another shape.
    """
    differing = architecture_differences(first.checkpoint.model, model.causal.config.to_dict())
    if differing:
        raise RecipeError(
            f"train.start_from: {first.name} holds another model than train.model ({', '.join(differing)}); leave the "
            "sizes out to take its own"
        )
    if dist.get_rank() == 0:
        first.folder.verify(first.checkpoint)
        tensors = StoredTensors(first.folder, first.checkpoint)
        with torch.no_grad():
            for name, parameter in named_parameters(model):
                parameter.copy_(tensors.read(f"{name}/weight"))
        told = {"start_from": first.name, "plan": first.checkpoint.loader["plan_id"]}
        folder.store.put(folder.at(RECORD), (json.dumps(told, indent=1, sort_keys=True) + "\n").encode())


def _own(folder: RunFolder) -> Checkpoint | None:
    """Return the newest of a run's checkpoints whose record can be read; None where there is none."""
    for step in reversed(folder.steps()):
        try:
            return folder.read(step)
        except ManifestError:  # whoever restores it tells
            continue
    return None


def _named(folder: RunFolder, name: str) -> FirstWeights:
    run, _, step = name.partition("@")
    other = RunFolder(folder.store, run)
    there = other.steps()
    if not there or (step and int(step) not in there):
        told = f"it has steps {', '.join(map(str, there))}" if there else "it has none"
        raise RecipeError(f"train.start_from: {name}: run {run} has no such checkpoint; {told}")
    return FirstWeights(folder=other, checkpoint=other.read(int(step) if step else there[-1]), is_other=True)


def _check_given(own: Checkpoint, settings: TrainSettings) -> None:
    before = own.settings.get("model", {}).get("from_path")
    if before != settings.model.from_path:
        raise RecipeError(
            f"train.model.from: is {settings.model.from_path!r}, and run {settings.run} was begun with {before!r}; "
            "name that one, or give this run another name (train.run)"
        )


def _check_vocabulary(first: FirstWeights, vocabulary: Vocabulary) -> None:
    if is_same_vocabulary(first.checkpoint.vocabulary, vocabulary):
        return
    found = first.checkpoint.vocabulary
    raise RecipeError(
        f"train.start_from: {first.name} was trained on vocabulary {described(found)} of "
        f"{first.checkpoint.model.get('vocab_size')} ids, the plan's is {described(vocabulary.spec)} of "
        f"{vocabulary.size}: an id would mean something else"
    )
