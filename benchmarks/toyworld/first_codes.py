"""The weights that the toy tokenizer begins with: the shipped ones, with a quarter of their codes, far from each other.

The shipped codebook has 2,048 codes, for photographs too. Codes that mean nearly the same share what there is to
learn of either, and noise decides between them: with the 1,024 most used ones a picture of one thing cost a model 34
nats, most of them for the background. So codes are taken one by one, each the farthest from those taken. The trade-
off: 512 codes leave clips, whose things stand anywhere, less sharp.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.toyworld.motion import draw_motion, motion
from benchmarks.toyworld.scenes import draw, scene

_SCENES, _CLIPS = 800, 60
_LEAST_USES = 3
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
    weights = load_file(source / "model.safetensors")
    kept = np.sort(_apart(weights[_CODEBOOK].astype(np.float64), uses, size))
    weights[_CODEBOOK] = np.ascontiguousarray(weights[_CODEBOOK][kept])
    staged = target.with_name(f"{target.name}.writing")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    save_file(weights, staged / "model.safetensors", metadata={"format": "pt"})
    described = json.loads((source / "config.json").read_text())
    (staged / "config.json").write_text(json.dumps(described | {"codebook_size": size}, indent=1))
    staged.rename(target)


def _apart(codebook: NDArray[np.float64], uses: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Choose `size` codes, the most used one first, then always the farthest of those that toy pictures use."""
    allowed = uses >= min(_LEAST_USES, int(np.sort(uses)[-size]))
    chosen = [int(uses.argmax())]
    away = np.where(allowed, np.inf, -1.0)
    while len(chosen) < size:
        away = np.minimum(away, ((codebook - codebook[chosen[-1]]) ** 2).sum(1))
        away[chosen[-1]] = -2.0
        chosen.append(int(away.argmax()))
    return np.array(chosen)
