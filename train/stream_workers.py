"""A stream whose micro-batches worker processes make, with the state of what came out of them.

A bare DataLoader knows nothing of steps: its workers' copies of the stream run ahead, and started anew they would begin
where the stream stands. Here the stream follows what was handed out, so that iterating again goes on, whatever the
number of workers. Workers are spawned: a start takes as long as importing torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader

from tokenmill.errors import RecipeError, RunError
from tokenmill.train.stream import MicroBatch, PlanStream

_START_S = 60.0  # workers say themselves what they wait for; then one may still be starting


class WorkerStream:
    """Iterates over a stream in `num_workers` processes; `arguments` go to torch's DataLoader (pin_memory, …).

    Raises RecipeError for `persistent_workers`, whose copies of the stream do not see what it is told, and for
    `in_order=False`; RunError, when it is iterated, for workers that give nothing in time.
    """

    def __init__(self, stream: PlanStream, num_workers: int, **arguments: Any) -> None:
        if arguments.get("persistent_workers") or not arguments.get("in_order", True):
            raise RecipeError("train: a WorkerStream takes no persistent_workers and no in_order=False")
        self.stream = stream
        started: dict[str, Any] = {"multiprocessing_context": "spawn", "timeout": stream.timeout_s + _START_S}
        arguments = (started if num_workers else {}) | arguments
        self._loader: DataLoader[MicroBatch] = DataLoader(stream, batch_size=None, num_workers=num_workers, **arguments)

    def __iter__(self) -> Iterator[MicroBatch]:
        batches = iter(self._loader)
        try:
            for batch in batches:
                if batch["micro_step"] == batch["micro_steps"] - 1:
                    self.stream.seek(batch["step"] + 1)
                yield batch
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
            raise RunError(
                f"train: the workers gave no micro-batch for {self._loader.timeout:g} s "
                f"behind step {self.stream.state_dict()}"
            ) from error
        finally:
            del batches  # which ends the workers

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)
