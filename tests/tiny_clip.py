"""A CLIP of open_clip's with two layers of 32 numbers, and heads for it, written to disk with fixed random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenmill.filters.clip_import import open_clip, quiet

DIMENSION, SIDE_PX = 16, 32
CONFIG: dict[str, Any] = {
    "embed_dim": DIMENSION,
    "quick_gelu": True,
    "vision_cfg": {"image_size": SIDE_PX, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def build() -> Any:
    """Return the network with weights that depend on nothing but the seed."""
    import torch

    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        return open_clip().CLIP(**json.loads(json.dumps(CONFIG))).eval()


def write_folder(folder: Path, **preprocessing: Any) -> Path:
    """Write the model as open_clip writes it for the hub: description and safetensors."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    described = {"model_cfg": CONFIG, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    save_file({k: v.contiguous() for k, v in build().state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def damaged(source: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Copy a model with its state changed by `change`."""
    from safetensors.torch import load_file, save_file

    target.mkdir()
    (target / "open_clip_config.json").write_text((source / "open_clip_config.json").read_text())
    state = load_file(source / "open_clip_model.safetensors")
    change(state)
    save_file(state, target / "open_clip_model.safetensors")
    return target


def linear_head(path: Path, outputs: int = 1, dimension: int = DIMENSION) -> Path:
    """Write LAION's first kind: one layer."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(1)
        torch.save(torch.nn.Linear(dimension, outputs).state_dict(), path)
    return path


def improved_head(path: Path) -> tuple[Path, Any]:
    """Write the shapes of LAION's second kind, with the embedding's length; returns the network too."""
    import torch
    from torch import nn

    class Predictor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = (DIMENSION, 1024, 128, 64, 16)
            linear = [nn.Linear(into, out) for into, out in pairwise(sizes)]
            dropout = [nn.Dropout(share) for share in (0.2, 0.2, 0.1)]
            self.layers = nn.Sequential(
                linear[0], dropout[0], linear[1], dropout[1], linear[2], dropout[2], linear[3], nn.Linear(16, 1)
            )

        def forward(self, x: Any) -> Any:
            return self.layers(x)

    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = Predictor().eval()
    torch.save(network.state_dict(), path)
    return path, network
