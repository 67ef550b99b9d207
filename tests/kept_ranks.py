"""What ranks of the tests of checkpoints and guards load and do, for `rank_server.py`.

One launch trains several jobs one after the other, since starting ranks costs more than training them. Steps are made
bad by the environment: `BAD_STEPS={"run": {"7": 1000, "9": "nan"}}` multiplies the weights in the arrays that the
loader gives a run for a step (from 1), so that loss and gradient are what the case needs, by the real way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any


def loaded() -> Any:
    """Load everything heavy; returns the function that trains."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    import deepspeed.ops  # noqa: F401
    import torch._inductor.compile_fx  # noqa: F401 - what the first engine loads
    from transformers import Emu3ForCausalLM  # noqa: F401

    import tokenmill.train.loop  # noqa: F401

    return train


def train(text: str, rows: Path) -> Any:
    """Train the jobs that a JSON list describes; returns the last one's result."""
    from torch import distributed

    from tokenmill.train import loop
    from tokenmill.train.job import TrainJob

    vars(loop)["_steps_ahead"] = partial(_spoiled, loop._steps_ahead, json.loads(os.environ.get("BAD_STEPS", "{}")))
    result = None
    for number, job in enumerate(json.loads(text)):
        if number:
            distributed.barrier()
        result = loop.train(TrainJob.model_validate(job), rows)
    return result


def _spoiled(plain: Any, bad: Mapping[str, Mapping[str, Any]], run: Any, done: int) -> Generator[Any]:
    factors = bad.get(run.settings.run, {})
    with closing(plain(run, done)) as steps:
        for step in steps:
            for arrays in step.micro_batches:
                arrays.loss_weight[:] *= float(factors.get(str(step.number + 1), 1.0))
            yield step
