"""A tokenizer's run to a checkpoint and back (`checkpoints.py`): every tensor by a name of its own.

    model/<name>  average/<name>  optimizer/<parameter>/<state>  codebook/<name>  objective/…  judge/<number>/<state>

All ranks hold the same, so rank 0 writes alone and the others wait. Nothing else is needed to go on bit for bit: a
step is a function of (list, settings, seed, step).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from tokenmill.errors import ManifestError, RecipeError
from tokenmill.settings_tokenizer import TokenizerTraining
from tokenmill.train.checkpoint_tensors import Tensors
from tokenmill.train.checkpoints import Checkpoint, RunFolder
from tokenmill.train.vision_run import TokenizerRun

PINNED = ("held_out", "seed", "shape", "start")
"""Settings that a begun run keeps; the others may change on the way."""


def save(run: TokenizerRun, folder: RunFolder, list_digest: str) -> None:
    """Publish a checkpoint of where the run is, and remove all but the newest; returns on all ranks once it exists."""
    if dist.get_rank() == 0:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(run)}
        entry = folder.write_tensors(run.step, 0, tensors)
        folder.publish(
            Checkpoint(
                step=run.step,
                loader={},
                model=run.model.config.to_dict(),
                vocabulary={},
                vision=None,
                settings={**run.settings.model_dump(mode="json", by_alias=True), "list": list_digest},
                tensors=dict.fromkeys(tensors, entry.name),
                files=(entry,),
            )
        )
        folder.prune(run.settings.keep)
    dist.barrier()


def load(run: TokenizerRun, folder: RunFolder, checkpoint: Checkpoint) -> None:
    """Take up a checkpoint; its digests are compared first. Raises ManifestError for damage or missing tensors."""
    if dist.get_rank() == 0:
        folder.verify(checkpoint)
    dist.barrier()
    with folder.tensors(checkpoint) as tensors, torch.no_grad():
        for name, tensor in [*run.model.state_dict().items()]:
            _fill(tensor, tensors, f"model/{name}")
        for name, tensor in [*run.average.state_dict().items()]:
            _fill(tensor, tensors, f"average/{name}")
        for name, parameter in run.named_trained():
            if (state := _states(checkpoint, tensors, f"optimizer/{name}", parameter)) is not None:
                run.optimizer.state[parameter] = state
        _fill(run.codebook.uses_V, tensors, "codebook/uses")
        _fill(run.codebook.sums_VD, tensors, "codebook/sums")
        _fill(run.last_used_V, tensors, "codebook/last_used")
        if run.judge is not None and _discriminator(checkpoint.settings) is not None:
            for name, tensor in run.objective.state_dict().items():
                _fill(tensor, tensors, f"objective/{name}")
            for number, parameter in enumerate(run.judge.param_groups[0]["params"]):
                if (state := _states(checkpoint, tensors, f"judge/{number}", parameter)) is not None:
                    run.judge.state[parameter] = state
    run.step = checkpoint.step


def check_resumable(checkpoint: Checkpoint, settings: TokenizerTraining, list_digest: str) -> None:
    """Raise RecipeError where a run was begun with other samples, weights or seed.

    A discriminator may come in or go on the way; one that stays keeps its shape.
    """
    now = settings.model_dump(mode="json", by_alias=True)
    then = checkpoint.settings
    differing = [f"{name} {then.get(name)!r} → {now[name]!r}" for name in PINNED if then.get(name) != now[name]]
    shapes = _discriminator(then), _discriminator(now)
    if None not in shapes and shapes[0] != shapes[1]:
        differing.append(f"losses.adversarial {shapes[0]} → {shapes[1]}")
    if then.get("list") != list_digest:
        differing.append("the list of samples")
    if differing:
        raise RecipeError(
            f"tokenizer.run: {settings.run!r} was begun with other settings ({'; '.join(differing)}); "
            "give it another name, or the settings it had"
        )


def _discriminator(settings: Mapping[str, Any]) -> str | None:
    """Say what shape a run's discriminator has; None where it has none."""
    against = settings["losses"]["adversarial"]
    return f"{against['channels']} channels, {against['layers']} layers" if against["weight"] > 0 else None


def _tensors(run: TokenizerRun) -> Iterator[tuple[str, torch.Tensor]]:
    for part, model in (("model", run.model), ("average", run.average)):
        for name, tensor in model.state_dict().items():
            yield f"{part}/{name}", tensor
    for name, parameter in run.named_trained():
        for key, value in run.optimizer.state.get(parameter, {}).items():
            yield f"optimizer/{name}/{key}", torch.as_tensor(value)
    yield "codebook/uses", run.codebook.uses_V
    yield "codebook/sums", run.codebook.sums_VD
    yield "codebook/last_used", run.last_used_V
    for name, tensor in run.objective.state_dict().items():
        yield f"objective/{name}", tensor
    if run.judge is not None:
        for number, parameter in enumerate(run.judge.param_groups[0]["params"]):
            for key, value in run.judge.state.get(parameter, {}).items():
                yield f"judge/{number}/{key}", torch.as_tensor(value)


def _states(checkpoint: Checkpoint, tensors: Tensors, prefix: str, parameter: torch.Tensor) -> dict[str, Any] | None:
    """Return an optimizer's states of a parameter; None where it had none yet."""
    names = [name for name in checkpoint.tensors if name.startswith(f"{prefix}/")]
    if not names:
        return None
    found = {name.rsplit("/", 1)[-1]: tensors.read(name) for name in names if name.count("/") == prefix.count("/") + 1}
    return {key: value if key == "step" else value.to(parameter.device) for key, value in found.items()}


def _fill(target: torch.Tensor, tensors: Tensors, name: str) -> None:
    value = tensors.read(name)
    if value.shape != target.shape:
        raise ManifestError(f"checkpoint: {name} is {tuple(value.shape)}, the run's {tuple(target.shape)}")
    target.copy_(value)
