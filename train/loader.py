"""The loader: packs of a plan, step by step, on any number of ranks.

Its whole state is a plan id and one integer. Step s always consumes packs [s·G, (s+1)·G) of the plan; ranks and
micro-steps only slice inside the step, so resuming is a seek and another number of ranks reads the same samples.
Threads read ahead by a bounded number of steps: reading and assembling are numpy and file reads, which release the GIL,
and a torch DataLoader's pipes would cost more than the work.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import tee
from typing import Any

from tokenmill.errors import RecipeError, RunError
from tokenmill.manifests.plans import Plan
from tokenmill.tokenize.vocabulary import Vocabulary
from tokenmill.train.assembly import Assembler
from tokenmill.train.continuing import takes_over
from tokenmill.train.read_ahead import ahead
from tokenmill.train.schedule import steps_per_epoch
from tokenmill.train.shard_bytes import ShardBytes, StoreBytes
from tokenmill.train.step_chunks import Dealing, StepChunks
from tokenmill.train.step_documents import step_documents
from tokenmill.train.steps import ReadSample, Step

__all__ = ["LoaderState", "PlanLoader", "ReadSample", "Step"]

_BYTES_AN_ID = 28  # ids, labels, positions of 8 bytes, a weight of 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderState:
    """Where training stands in a plan; a few hundred bytes of JSON."""

    plan_id: str
    phase: str
    epoch: int
    next_pack: int
    global_packs: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class PlanLoader:
    """Gives the steps of a plan to one rank of `world`.

    Raises RecipeError for more ranks than packs in a step, or a plan of another vocabulary.
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
        threads: int = 2,
        read_ahead_steps: int = 4,
        read_ahead_bytes: int = 2**30,
        step_timeout_s: float = 900.0,
        source: ShardBytes | None = None,
    ) -> None:
        if world > global_packs:
            raise RecipeError(f"train: {world} ranks cannot share {global_packs} packs a step (global_packs_per_step)")
        if vocabulary.fingerprint != plan.description["vocabulary_fingerprint"]:
            raise RecipeError(
                f"train: {plan.folder.path} was planned with another vocabulary ({plan.description['vocabulary']}) "
                f"than the one given ({vocabulary.spec})"
            )
        self.plan = plan
        self.vocabulary = vocabulary
        self.global_packs = global_packs
        self.rank, self.world = rank, world
        self.micro_packs = min(micro_packs, -(-global_packs // world))
        self._chunks = StepChunks(plan, Dealing(global_packs=global_packs, rank=rank, world=world,
                                                micro_packs=self.micro_packs, micro_steps=self.micro_steps,
                                                attention_share=attention_share))  # fmt: skip
        self._threads = threads
        self._read_ahead_steps, self._read_ahead_bytes = read_ahead_steps, read_ahead_bytes
        self._step_timeout_s = step_timeout_s
        self._waiting_for: dict[int, str] = {}  # thread that makes a step → shard
        self._source = StoreBytes(plan.folder.store) if source is None else source
        self._assembler = Assembler(plan, vocabulary, self._source, self._waits, read_ahead_steps + threads + 1)

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.plan.num_packs, self.global_packs)

    @property
    def micro_steps(self) -> int:
        """Micro-steps in a full step, the same on every rank."""
        return -(-self.global_packs // (self.world * self.micro_packs))

    @property
    def step_bytes(self) -> int:
        """Bytes of the arrays of a full step."""
        return self.micro_steps * self.micro_packs * self.plan.context * _BYTES_AN_ID

    def packs_of(self, step: int) -> range:
        """Return the packs that a step consumes on all ranks together; the last step of an epoch may have fewer."""
        first = step % self.steps_per_epoch * self.global_packs
        return range(first, min(first + self.global_packs, self.plan.num_packs))

    def step(self, number: int, only: int | None = None) -> Step:
        """Read and assemble this rank's part of a step, or only one of its micro-batches."""
        try:
            return self._step(number, only)
        finally:
            self._waiting_for.pop(threading.get_ident(), None)

    def _step(self, number: int, only: int | None) -> Step:
        chunk = self._chunks.of(number % self.steps_per_epoch)
        place = number % self.steps_per_epoch - chunk.first_step
        slots = chunk.slots[place] if only is None else self._chunks.slots_of(chunk, place, only)
        micro_batches, faults = self._assembler.micro_batches(slots)
        return Step(
            number=number,
            epoch=number // self.steps_per_epoch,
            micro_batches=micro_batches,
            weight=chunk.weight[place],
            num_tokens=chunk.tokens[place],
            squares=chunk.squares[place],
            faults=faults,
            tell_samples=partial(self._assembler.samples, slots, faults),
            tell_documents=partial(step_documents, self.plan, slots, self.packs_of(number)),
        )

    def steps(self, start: int, stop: int) -> Generator[Step, None, None]:
        """Yield steps [start, stop), read ahead by threads; order and content do not depend on them.

        Raises RunError naming the shards that threads wait for when a step does not come in time.
        """
        with closing(self._source):
            if self._threads:
                places = ((number, None) for number in range(start, stop))
                yield from self._in_time(places, self._threads, self._ahead())
            else:
                yield from map(self.step, range(start, stop))

    def micro_batches(self, places: Iterable[tuple[int, int]]) -> Generator[Step, None, None]:
        """Yield one micro-batch of each (step, micro-step), none ahead; raises as `steps`."""
        with closing(self._source):
            yield from self._in_time(places, 1, 1)

    def _in_time(
        self, places: Iterable[tuple[int, int | None]], threads: int, most: int
    ) -> Generator[Step, None, None]:
        """Yield what threads make of each (step, micro-step or all); raises RunError if it does not come in time."""
        places, expected = tee(places)
        results = ahead(lambda place: self.step(*place), places, threads=threads, most=most,
                        timeout_s=self._step_timeout_s)  # fmt: skip
        with closing(results):
            for number, _ in expected:
                try:
                    step = next(results)
                except TimeoutError:
                    waited = ", ".join(sorted(set(self._waiting_for.copy().values()))) or "the plan's tables"
                    raise RunError(
                        f"step {number} did not come within {self._step_timeout_s:g} s; waiting for {waited}"
                    ) from None
                yield step

    def state(self, step: int) -> LoaderState:
        """Tell the state after `step` steps."""
        return LoaderState(
            plan_id=self.plan.plan_id,
            phase=self.plan.phase,
            epoch=step // self.steps_per_epoch,
            next_pack=step % self.steps_per_epoch * self.global_packs,
            global_packs=self.global_packs,
        )

    def step_of(self, state: Mapping[str, Any]) -> int:
        """Return the step to go on with; raises RecipeError naming the fields if the state is of another plan.

        That of the plan which this one continues, at the step where it takes over, is step 0 of this one.
        """
        if takes_over(self.plan, state):
            return 0
        mine = self.state(0).to_json()
        fixed = ("plan_id", "phase", "global_packs")
        differing = [f"{name} {state.get(name)!r} ≠ {mine[name]!r}" for name in fixed if state.get(name) != mine[name]]
        if differing:
            raise RecipeError(f"train: the checkpoint is of another plan or step size: {', '.join(differing)}")
        return int(state["epoch"]) * self.steps_per_epoch + int(state["next_pack"]) // self.global_packs

    def _ahead(self) -> int:
        """How many steps may wait: as many as asked, if their bytes stay within the bound."""
        return max(1, min(self._read_ahead_steps, self._read_ahead_bytes // self.step_bytes))

    def _waits(self, shard: str) -> None:
        self._waiting_for[threading.get_ident()] = shard
