"""transformers' own Trainer on batches padded to their longest document: `python -m … JOB`, in a process of its own.

JOB is a JSON file with the fields of `Job`. A line of JSON comes back: seconds and supervised ids of the measured
steps, and the losses of all.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Emu3ForCausalLM, Trainer, TrainerCallback, TrainingArguments

from benchmarks.train_runs.padding import NO_LABEL, Documents, padded


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to train; a step goes over `step_documents`, in batches of `batch` that go through the model at once."""

    model: str
    documents: str
    batch: int
    step_documents: int
    steps: int
    warm_up_steps: int
    grouped: bool
    seed: int
    lr: float
    pad: int


class Measure(TrainerCallback):  # type: ignore[misc]
    """Notes when each step ends, its loss, and how many ids it has supervised and seen."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.ends: list[float] = []
        self.supervised: list[int] = []
        self.padded: list[int] = []
        self.losses: list[float] = []
        self._supervised = self._padded = 0
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _module: Any, _args: Any, batch: dict[str, Any]) -> None:
        self._supervised += int((batch["labels"][:, 1:] != NO_LABEL).sum())
        self._padded += batch["input_ids"].numel()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())
        self.supervised.append(self._supervised)
        self.padded.append(self._padded)

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def train(job: Job, folder: Path) -> dict[str, Any]:
    """Train and return what was measured after the first steps."""
    model = Emu3ForCausalLM.from_pretrained(job.model, attn_implementation="sdpa", dtype=torch.float32)
    measure = Measure(model)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=job.batch,
        gradient_accumulation_steps=job.step_documents // job.batch,
        max_steps=job.steps,
        learning_rate=job.lr,
        lr_scheduler_type="constant",
        weight_decay=0.1,
        adam_beta2=0.95,
        train_sampling_strategy="group_by_length" if job.grouped else "random",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=job.seed,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Documents(job.documents),
        data_collator=lambda documents: padded(documents, job.pad),
        callbacks=[measure],
    )
    trainer.train()
    first = job.warm_up_steps - 1
    return {
        "seconds": measure.ends[-1] - measure.ends[first],
        "supervised": measure.supervised[-1] - measure.supervised[first],
        "ids": measure.padded[-1] - measure.padded[first],
        "losses": measure.losses,
    }


def main(arguments: list[str]) -> None:
    path = Path(arguments[0])
    found = train(Job(**json.loads(path.read_text())), path.parent / "trainer")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
