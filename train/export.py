"""From a checkpoint to a folder that transformers opens: shards of weights, configurations, tokenizer, tokenmill.json.

Needs no DeepSpeed and no process group: a checkpoint holds whole parameters, and they go one shard at a time from where
they lie to where they belong. `tokenmill.json` is written last: it makes the export exist, with every file's digest,
and says with which vocabulary and vision tokenizer the ids were made; without it the model's output means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenmill.manifests.identity import sha256_hex
from tokenmill.settings_model import ExportSettings
from tokenmill.tokenize.vocabulary import build_vocabulary
from tokenmill.train.checkpoints import Checkpoint, RunFolder
from tokenmill.train.export_tokenizer import tokenizer_files
from tokenmill.train.export_weights import write_weights
from tokenmill.train.model import causal_class
from tokenmill.train.stored_tensors import StoredTensors

RECORD = "tokenmill.json"


def export_checkpoint(
    folder: RunFolder,
    step: int,
    areas: Mapping[str, Any] | None = None,
    settings: ExportSettings | None = None,
    fingerprints: Mapping[str, str] | None = None,
) -> str:
    """Write `checkpoints/<run>/export` from the checkpoint of a step; returns its path relative to the root.

    `areas` says of each modality the sizes it was tokenized at: least and largest area, largest aspect. `fingerprints`
    (`vocabulary_fingerprint`, `vision_fingerprint`) are compared by whoever opens the export. Raises ManifestError
    where the checkpoint does not hold the model it describes.
    """
    settings = settings or ExportSettings()
    checkpoint = folder.read(step)
    target = folder.at("export")
    model = _empty_model(checkpoint.model)
    if folder.store.exists(f"{target}/{RECORD}"):  # an old description must never stand beside new weights
        folder.store.delete(f"{target}/{RECORD}")
    files = write_weights(StoredTensors(folder, checkpoint), model, folder.store, target, settings)
    for name, data in _described(checkpoint, model, settings.precision).items():
        folder.store.put(f"{target}/{name}", data)
        files[name] = sha256_hex(data)
    about = {
        "vocabulary": dict(checkpoint.vocabulary),
        "vision": checkpoint.vision,
        "plan": checkpoint.loader["plan_id"],
        "step": step,
        "precision": settings.precision,
        **({"areas": dict(areas)} if areas else {}),
        **(fingerprints or {}),
        "files": files,
    }
    old = [entry.path for entry in folder.store.files(target) if entry.path.removeprefix(f"{target}/") not in files]
    folder.store.delete_many(old)
    folder.store.put(f"{target}/{RECORD}", (json.dumps(about, indent=1, sort_keys=True) + "\n").encode())
    return target


def _empty_model(config: Mapping[str, Any]) -> Any:
    """Build a model of this configuration without values: names and shapes."""
    import torch
    from transformers import AutoConfig

    with torch.device("meta"):
        return causal_class(config)(AutoConfig.for_model(**config))


def _described(checkpoint: Checkpoint, model: Any, precision: str) -> dict[str, bytes]:
    """Return the small files by name: configurations, and the tokenizer where the vocabulary has one to give."""
    from transformers import GenerationConfig

    config = model.config
    config.dtype = "bfloat16" if precision == "bf16" else "float32"
    with TemporaryDirectory(prefix="tokenmill-") as scratch:
        config.save_pretrained(scratch)
        GenerationConfig.from_model_config(config).save_pretrained(scratch)
        files = {path.name: path.read_bytes() for path in sorted(Path(scratch).iterdir())}
    return files | tokenizer_files(build_vocabulary(checkpoint.vocabulary), config.max_position_embeddings)
