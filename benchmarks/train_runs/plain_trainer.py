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

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Emu3ForCausalLM, Trainer, TrainerCallback, TrainingArguments

NO_LABEL = -100


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


class Documents(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Ids and labels of one document an item; transformers shifts labels itself."""

    def __init__(self, path: str) -> None:
        with np.load(path) as found:
            self._ids = torch.from_numpy(found["ids"].astype(np.int64))
            self._labels = self._ids.masked_fill(~torch.from_numpy(found["learned"]), NO_LABEL)
            self._borders = found["borders"].tolist()

    def __len__(self) -> int:
        return len(self._borders) - 1

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        here = slice(self._borders[number], self._borders[number + 1])
        return {"input_ids": self._ids[here], "labels": self._labels[here]}


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


def padded(documents: list[dict[str, Tensor]], pad: int) -> dict[str, Tensor]:
    """Make a batch of documents, each filled up to the longest."""
    ids, labels = ([document[name] for document in documents] for name in ("input_ids", "labels"))
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad),
        "labels": pad_sequence(labels, batch_first=True, padding_value=NO_LABEL),
        "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
    }


def main(arguments: list[str]) -> None:
    path = Path(arguments[0])
    found = train(Job(**json.loads(path.read_text())), path.parent / "trainer")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
