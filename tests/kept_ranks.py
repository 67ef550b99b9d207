"""What ranks of the tests of checkpoints and guards load and do, for `rank_server.py`.

Steps are made bad by the environment: `BAD_STEPS={"7": 1000, "9": "nan"}` multiplies the weights in the arrays that the
loader gives for a step (from 1), so that loss and gradient are what the case needs, by the real way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any


def loaded() -> Any:
    """Load everything heavy; returns the function that trains."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    from transformers import Emu3ForCausalLM  # noqa: F401

    import tokenmill.train.loop  # noqa: F401

    return train


def train(text: str, rows: Path) -> Any:
    """Train the job that a JSON text describes."""
    from tokenmill.train import loop
    from tokenmill.train.job import TrainJob

    bad = {int(step): float(factor) for step, factor in json.loads(os.environ.get("BAD_STEPS", "{}")).items()}
    plain = loop._steps_ahead

    def steps_ahead(run: Any, done: int) -> Generator[Any]:
        for step in plain(run, done):
            for arrays in step.micro_batches:
                arrays.loss_weight[:] *= bad.get(step.number + 1, 1.0)
            yield step

    vars(loop)["_steps_ahead"] = steps_ahead
    return loop.train(TrainJob.model_validate_json(text), rows)
