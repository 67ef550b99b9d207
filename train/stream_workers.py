"""A stream whose micro-batches worker processes make, with the state of what came out of them.

A bare DataLoader knows nothing of steps: its workers' copies of the stream run ahead, and started anew they would begin
where the stream stands. Here the stream follows what was handed out, so that iterating again goes on, whatever the
number of workers. Workers are spawned: a start takes as long as importing torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader

from tokenmill.train.stream import MicroBatch, PlanStream


class WorkerStream:
    """Iterates over a stream in `num_workers` processes; `arguments` go to torch's DataLoader (pin_memory, …)."""

    def __init__(self, stream: PlanStream, num_workers: int, **arguments: Any) -> None:
        self.stream = stream
        started: dict[str, Any] = (
            {"multiprocessing_context": "spawn", "timeout": stream.timeout_s} if num_workers else {}
        )
        arguments = started | arguments
        self._loader: DataLoader[MicroBatch] = DataLoader(stream, batch_size=None, num_workers=num_workers, **arguments)

    def __iter__(self) -> Iterator[MicroBatch]:
        batches = iter(self._loader)
        try:
            for batch in batches:
                if batch["micro_step"] == batch["micro_steps"] - 1:
                    self.stream.seek(batch["step"] + 1)
                yield batch
        finally:
            del batches  # which ends the workers

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)
