"""The weights that the toy tokenizer begins with: the shipped ones, with the codes that toy pictures use most.

The shipped codebook has 2,048 codes, for photographs too. A toy picture needs fewer, and a code that means the same as
another halves what a small model sees of either: with half as many it learns faster. The trade-off: 1,024 codes leave
clips, whose things stand anywhere, a decibel less.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from benchmarks.toyworld.motion import draw_motion, motion
from benchmarks.toyworld.scenes import draw, scene

_SCENES, _CLIPS = 400, 40
_CODEBOOK = "quantize.embedding.weight"


def write_first_tokenizer(source: Path, target: Path, size: int) -> None:
    """Write a tokenizer of `size` codes into the folder `target`; once."""
    if target.exists():
        return
    from safetensors.numpy import load_file, save_file

    from tokenmill.tokenize.vision import load_vision_tokenizer

    tokenizer = load_vision_tokenizer(source)
    codes = tokenizer.encode_images(np.stack([draw(scene(seed)) for seed in range(_SCENES)])).ravel()
    moving = tokenizer.encode_video(np.stack([draw_motion(motion(seed)) for seed in range(_CLIPS)])).ravel()
    uses = np.bincount(np.concatenate([codes, moving]), minlength=tokenizer.codebook_size)
    kept = np.sort(np.argsort(-uses, kind="stable")[:size])
    weights = load_file(source / "model.safetensors")
    weights[_CODEBOOK] = np.ascontiguousarray(weights[_CODEBOOK][kept])
    staged = target.with_name(f"{target.name}.writing")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    save_file(weights, staged / "model.safetensors", metadata={"format": "pt"})
    described = json.loads((source / "config.json").read_text())
    (staged / "config.json").write_text(json.dumps(described | {"codebook_size": size}, indent=1))
    staged.rename(target)
