"""Write a run's averaged weights as a folder that `from_pretrained` opens: half precision, safetensors, figures.

Half precision halves the file to 1.8 MB; weights are loaded back as float32, and what is measured is what is shipped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tokenmill.errors import RunError
from tokenmill.train.vision_measure import measure
from tokenmill.train.vision_recipe import VisionRecipe
from tokenmill.train.vision_run import CHECKPOINT, RECIPE, build_model


def export_run(run: Path, folder: Path, *, scenes: int = 256) -> dict[str, Any]:
    """Write `config.json`, `model.safetensors` and `training.json` (recipe, figures) to `folder`; returns the figures.

    Raises:
        RunError: the run has no checkpoint yet.
    """
    if not (run / CHECKPOINT).exists():
        raise RunError(f"{run}: no checkpoint; train first, or wait for the first one")
    recipe = VisionRecipe.model_validate_json((run / RECIPE).read_bytes())
    state = torch.load(run / CHECKPOINT, weights_only=True)
    model = build_model(recipe.shape, seed=recipe.seed)
    model.load_state_dict(state["average"])
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # save_pretrained makes it private
    figures = {"step": state["step"], **measure(model.float(), scenes=scenes), "recipe": recipe.model_dump(mode="json")}
    (folder / "training.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures
