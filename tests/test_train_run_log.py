"""A run's rows: cut back to where it resumes, whole after a kill, and published where the store is remote."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from tokenmill.manifests.storage import open_store
from tokenmill.settings_train import TrainSettings
from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.loader import ReadSample, Step
from tokenmill.train.rows import RowFile, RowTail, read_rows
from tokenmill.train.run_log import RunLog
from tokenmill.train.step_documents import StepDocuments


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


NO_DOCUMENTS = StepDocuments(templates=[], packs=np.zeros((0, 1), np.int64), weight=np.zeros(0))


def step(number: int, fault: str | None = None) -> Step:
    sample = ReadSample(pack=number, slot=0, key="k", shard="s.tar", sample=7, start=0, length=9, template="language",
                        fault=fault)  # fmt: skip
    return Step(number=number, epoch=0, micro_batches=[], weight=1.0, num_tokens=9, squares=81,
                faults=[sample] if fault else [], tell_samples=lambda: [sample],
                tell_documents=lambda: NO_DOCUMENTS)  # fmt: skip


def log_steps(folder: RunFolder, settings: TrainSettings, start: int, stop: int, **row: Any) -> None:
    run_log = RunLog(folder, settings, start, None)
    for number in range(start, stop):
        run_log.add(step(number, row.get("fault")), {"step": number + 1, "unreadable": 1 if row else 0, **row}, stop)
    run_log.close()


def test_rows_cut_back_to_a_step_drop_later_ones_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')

    file = RowFile(path, 2)
    file.add({"step": 3, "again": True})
    file.close()

    assert list(read_rows(path)) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_row_tail_gives_each_whole_row_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    tail = RowTail(path)
    assert tail.new() == []

    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert tail.new() == [{"step": 1}, {"step": 2}]
    with path.open("a") as file:
        file.write('ep": 3}\n')
    assert tail.new() == [{"step": 3}]
    assert tail.new() == []


def test_run_log_on_a_remote_store_is_published_and_continued(alone: None) -> None:
    folder = RunFolder(open_store(f"memory://{uuid.uuid4().hex}"), "main")
    settings = TrainSettings(tensorboard=False, log_samples=True)

    log_steps(folder, settings, 0, 4)
    log_steps(folder, settings, 2, 5)

    for name in ("metrics", "samples"):
        lines = folder.store.read_bytes(folder.at(f"{name}.jsonl")).decode().splitlines()
        assert [line.split(",")[0] for line in lines] == [f'{{"step": {n}' for n in range(1, 6)]


def test_run_log_lists_what_could_not_be_read(alone: None, tmp_path: Path) -> None:
    folder = RunFolder(open_store(str(tmp_path / "store")), "main")

    log_steps(folder, TrainSettings(tensorboard=False), 0, 1, fault="unreadable: cut off")

    (row,) = read_rows(tmp_path / "store" / "checkpoints" / "main" / "unreadable.jsonl")
    assert (row["step"], row["shard"], row["sample"], row["fault"]) == (1, "s.tar", 7, "unreadable: cut off")
    assert not (tmp_path / "store" / "checkpoints" / "main" / "samples.jsonl").exists()
