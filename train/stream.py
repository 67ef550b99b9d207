"""A plan as a torch-style iterable of micro-batches, with a state of five fields.

Threads read ahead inside the process (`settings.threads`), which is the preferred way: a DataLoader's worker processes
send every array through a pipe or shared memory, which costs more than making it (docs/loader.md has the figures). In
workers each one makes every W-th micro-batch, so that the DataLoader's round robin gives the plan's order; what they
have made ahead is no part of any state. Ranks, workers and accumulation never change which samples a step has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any, Self, TypedDict

import torch
from torch.utils.data import IterableDataset, get_worker_info

from tokenmill.errors import RecipeError, RunError
from tokenmill.manifests.plans import Plan, open_plan
from tokenmill.manifests.storage import open_store
from tokenmill.settings_loader import LoaderSettings
from tokenmill.tokenize.vocabulary import Vocabulary, build_vocabulary
from tokenmill.train.loader import PlanLoader
from tokenmill.train.loading import loading
from tokenmill.train.steps import Step


class MicroBatch(TypedDict):
    """What goes through the model at once on a rank: `micro_packs` packs end to end (L ids, D documents).

    input_ids, labels, position_ids: int64 (L,); loss_weight: float32 (L,); cu_seqlens: int32 (D + 1,). Labels are
    shifted already, -100 where there is none (train/packs.py). `step_weight` and `step_tokens` are those of the whole
    optimizer step on all ranks, from the plan: loss = Σ loss_weight · cross-entropy ÷ step_weight.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    loss_weight: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    step: int
    micro_step: int
    micro_steps: int
    step_weight: float
    step_tokens: int


class PlanStream(IterableDataset[MicroBatch]):
    """Gives a rank its micro-batches from the step where it stands to the end of the epoch, or to `stop_step`.

    The next iteration goes on from there: after an epoch comes the next one, and one that was left early is taken up
    behind the last whole step that was handed out. One iteration at a time.

    Args:
        global_packs: packs of an optimizer step, on all ranks together.
        micro_packs: packs that go through the model at once on a rank.
        attention_share: what a pair of ids costs in attention, in units of an id (PackCost.cost).
        stop_step: the step before which every iteration ends; absent = it ends with each epoch.

    Raises:
        RecipeError: more ranks than packs in a step, a rank that there isn't, a plan of another vocabulary.
    """

    def __init__(
        self,
        plan: Plan,
        vocabulary: Vocabulary,
        *,
        global_packs: int,
        rank: int = 0,
        world: int = 1,
        micro_packs: int = 1,
        attention_share: float = 0.0,
        stop_step: int | None = None,
        settings: LoaderSettings | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= rank < world:
            raise RecipeError(f"train: rank {rank} of {world} ranks; ranks go from 0 to world - 1")
        self._store, self._path, self._spec = plan.folder.store, plan.folder.path, vocabulary.spec
        self._shape: dict[str, Any] = {
            "global_packs": global_packs,
            "rank": rank,
            "world": world,
            "micro_packs": micro_packs,
            "attention_share": attention_share,
        }
        self._settings = settings or LoaderSettings()
        self._stop_step = stop_step
        self._step = 0  # the first one that was not handed out whole
        self._item: int | None = None  # in a worker: its next micro-batch, counted from the beginning of the plan
        self._broken_off = False
        self._loader: PlanLoader | None = self._made(plan, vocabulary)
        self._process = os.getpid()

    @classmethod
    def from_url(cls, url: str, *, storage: Mapping[str, Any] | None = None, **arguments: Any) -> Self:
        """Open the stream of the plan at `<root>/plans/<phase>/<plan>` with four reads and no listing.

        `storage` are a recipe's storage options; the rest is as for the class, `vocabulary` being the plan's own.
        """
        root, found, name = url.rstrip("/").rpartition("/plans/")
        if not found or name.count("/") != 1:
            raise RecipeError(f"{url}: not the URL of a plan, which ends in /plans/<phase>/<plan>")
        plan = open_plan(open_store(root, storage), f"plans/{name}")
        return cls(plan, build_vocabulary(plan.description["vocabulary"]), **arguments)

    @property
    def loader(self) -> PlanLoader:
        """The loader of this process: a worker that was started anew opens the plan for itself.

        Raises RunError in a forked process: the threads of Polars and of the object store's client did not come along,
        and the first table would be waited for for ever.
        """
        if self._process != os.getpid():
            raise RunError(
                "train: a DataLoader's worker was forked from this process, and would hang; give the DataLoader "
                'multiprocessing_context="spawn", or use WorkerStream(stream, num_workers)'
            )
        if self._loader is None:
            plan = open_plan(open_store(self._store.url, self._store.options), self._path)
            self._loader = self._made(plan, build_vocabulary(self._spec))
        return self._loader

    @property
    def steps_per_epoch(self) -> int:
        return self.loader.steps_per_epoch

    @property
    def micro_steps(self) -> int:
        """Micro-batches of every step, the same number on every rank."""
        return self.loader.micro_steps

    @property
    def timeout_s(self) -> float:
        """How long a step may be waited for."""
        return self._settings.timeout_s

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loader": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_process": os.getpid()})

    def state_dict(self) -> dict[str, Any]:
        """Tell what was consumed: every step whose last micro-batch was handed out; under 1 KB of JSON.

        In a DataLoader's worker it also says what that worker makes next, which only the same worker can take up.
        """
        worker = get_worker_info()
        if worker is None:
            return self.state_after(self._step)
        item = self._step * self.micro_steps + worker.id if self._item is None else self._item
        place = {"item": item, "worker": worker.id, "workers": worker.num_workers}
        return self.state_after(item // self.micro_steps) | place

    def state_after(self, step: int) -> dict[str, Any]:
        """Tell the state after `step` steps: what to save when a DataLoader's worker processes run ahead."""
        return self.loader.state(step).to_json()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state with the next iteration; raises RecipeError naming the fields of another plan's."""
        step, item = _step_of(self.loader, state), _item_of(state)
        self.seek(step)
        self._item = item

    def seek(self, step: int) -> None:
        """Begin the next iteration with this step, counted over the epochs."""
        self._step, self._item, self._broken_off = step, None, False

    def __iter__(self) -> Iterator[MicroBatch]:
        worker = get_worker_info()
        return self._in_threads() if worker is None else self._in_worker(worker.id, worker.num_workers)

    def _in_threads(self) -> Iterator[MicroBatch]:
        start, stop = self._step, self._end_of(self._step)
        with closing(self.loader.steps(start, stop)) as steps:
            for step in steps:
                for number in range(len(step.micro_batches)):
                    if number == len(step.micro_batches) - 1:
                        self._step = step.number + 1
                    yield micro_batch(step, number, len(step.micro_batches))

    def _in_worker(self, worker: int, workers: int) -> Iterator[MicroBatch]:
        if self._broken_off:
            raise RunError(
                "train: an iteration over persistent workers was left early, and what they had made ahead is lost; "
                "make a new DataLoader after stream.seek(steps done)"
            )
        self._broken_off = True
        loader, micro_steps = self.loader, self.micro_steps
        stop = self._end_of(self._step)
        first = self._step * micro_steps + worker if self._item is None else self._item
        items = range(first, stop * micro_steps, workers)
        with closing(loader.micro_batches(divmod(item, micro_steps) for item in items)) as steps:
            for item, step in zip(items, steps, strict=True):
                made = micro_batch(step, 0, micro_steps)
                made["micro_step"] = item % micro_steps
                self._item = item + workers
                yield made
        self._step, self._item, self._broken_off = stop, None, False

    def _end_of(self, step: int) -> int:
        """Return the step before which an iteration that begins with this one ends."""
        per_epoch = self.steps_per_epoch
        return (step // per_epoch + 1) * per_epoch if self._stop_step is None else max(step, self._stop_step)

    def _made(self, plan: Plan, vocabulary: Vocabulary) -> PlanLoader:
        return PlanLoader(plan, vocabulary, **loading(plan, self._settings), **self._shape)


def micro_batch(step: Step, number: int, micro_steps: int) -> MicroBatch:
    """Give one of a step's micro-batches as tensors that share the arrays' memory."""
    arrays = step.micro_batches[number]
    return MicroBatch(
        input_ids=torch.from_numpy(arrays.input_ids),
        labels=torch.from_numpy(arrays.labels),
        loss_weight=torch.from_numpy(arrays.loss_weight),
        position_ids=torch.from_numpy(arrays.position_ids),
        cu_seqlens=torch.from_numpy(arrays.cu_seqlens),
        step=step.number,
        micro_step=number,
        micro_steps=micro_steps,
        step_weight=step.weight,
        step_tokens=step.num_tokens,
    )


def _step_of(loader: PlanLoader, state: Mapping[str, Any]) -> int:
    """Return the step to go on with; raises RecipeError also for what never was a state."""
    try:
        step = loader.step_of(state)
        mine = loader.state(step).to_json()
        is_other = state["plan_id"] != mine["plan_id"]  # of the plan which this one continues: compared already
        if step >= 0 and (is_other or mine.items() <= dict(state).items()):
            return step
    except (KeyError, TypeError, ValueError):
        pass
    raise RecipeError(f"train: no state of this loader: {str(dict(state))[:300]}")


def _item_of(state: Mapping[str, Any]) -> int | None:
    """Return where a worker goes on, if the state is one's; raises RecipeError if it is another worker's."""
    if "item" not in state:
        return None
    worker = get_worker_info()
    mine = None if worker is None else (worker.id, worker.num_workers)
    if mine != (state["worker"], state["workers"]):
        place = "no worker" if mine is None else f"worker {mine[0]} of {mine[1]}"
        raise RecipeError(
            f"train: a state of worker {state['worker']} of {state['workers']} in {place}: it goes on with as many "
            "workers only; stream.state_after(steps done) goes on with any number"
        )
    return int(state["item"])
