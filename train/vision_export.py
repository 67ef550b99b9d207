"""A run's averaged weights as a folder that `Emu3VQVAE.from_pretrained` and `load_vision_tokenizer` open.

In full precision: what was measured is what is written. The weights are one object, replaced in one step, and
`training.json` beside them says of which step they are.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenmill.manifests.identity import sha256_hex
from tokenmill.tokenize.loading import without_progress_bar
from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.vision_launch import EXPORT, FIGURES


def export_tokenizer(folder: RunFolder, model: Any, about: Mapping[str, Any]) -> str:
    """Write `export/` of a run from a model; `about` (step, list, figures, settings) goes into `training.json`.

    Returns its path relative to the root.
    """
    with TemporaryDirectory(prefix="tokenmill-") as scratch, without_progress_bar():
        copy.deepcopy(model).cpu().save_pretrained(scratch)
        files = {path.name: path.read_bytes() for path in sorted(Path(scratch).iterdir())}
    for name, data in files.items():
        folder.store.put(folder.at(f"{EXPORT}/{name}"), data)
    described = {**about, "files": {name: sha256_hex(data) for name, data in files.items()}}
    folder.store.put(folder.at(f"{EXPORT}/{FIGURES}"), (json.dumps(described, indent=1) + "\n").encode())
    return folder.at(EXPORT)
