"""From a checkpoint to a folder that transformers opens: model.safetensors, config.json and a tokenmill.json beside.

Needs no DeepSpeed and no process group: a checkpoint holds whole parameters. `tokenmill.json` says with which
vocabulary and vision tokenizer the ids were made; without it the model's output means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenmill.manifests.identity import sha256_hex
from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.model import causal_class


def export_checkpoint(folder: RunFolder, step: int, areas: Mapping[str, Any] | None = None) -> str:
    """Write `checkpoints/<run>/export` from the checkpoint of a step; returns its path relative to the root.

    `areas` says of each modality the sizes it was tokenized at: least and largest area, largest aspect.
    """
    checkpoint = folder.read(step)
    model = _model(checkpoint.model)
    with folder.tensors(checkpoint) as tensors:
        model.load_state_dict({name: tensors.read(f"{name}/weight") for name in model.state_dict()}, assign=True)
    about = {
        "vocabulary": dict(checkpoint.vocabulary),
        "vision": checkpoint.vision,
        "plan": checkpoint.loader["plan_id"],
        "step": step,
        **({"areas": dict(areas)} if areas else {}),
    }
    target = folder.at("export")
    with TemporaryDirectory(prefix="tokenmill-") as scratch:
        model.save_pretrained(scratch)
        files = {path.name: path.read_bytes() for path in sorted(Path(scratch).iterdir())}
    if folder.store.exists(f"{target}/tokenmill.json"):  # an old description must never stand beside new weights
        folder.store.delete(f"{target}/tokenmill.json")
    for name, data in files.items():
        folder.store.put(f"{target}/{name}", data)
    about["files"] = {name: sha256_hex(data) for name, data in files.items()}
    folder.store.put(f"{target}/tokenmill.json", (json.dumps(about, indent=1, sort_keys=True) + "\n").encode())
    return target


def _model(config: Mapping[str, Any]) -> Any:
    """Build an empty model of this configuration."""
    from transformers import AutoConfig

    return causal_class(config)(AutoConfig.for_model(**config))
