"""The loader: packs of a plan, step by step, on any number of ranks.

Its whole state is a plan id and one integer. Step s always consumes packs [s·G, (s+1)·G) of the plan; ranks and
micro-steps only slice inside the step, so resuming is a seek and another number of ranks reads the same samples.
Threads read ahead by a bounded number of steps: reading and assembling are numpy and file reads, which release the GIL,
and a torch DataLoader's pipes would cost more than the work.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tokenmill.errors import ManifestError, RecipeError, RunError, SampleError, StorageError
from tokenmill.manifests.plan_rows import Placed
from tokenmill.manifests.plans import Plan
from tokenmill.tokenize.documents import Assembled, assemble
from tokenmill.tokenize.frames import take_frames
from tokenmill.tokenize.vocabulary import Vocabulary
from tokenmill.train.dealing import deal
from tokenmill.train.packs import PackArrays, build_pack, filler_pack, join_packs
from tokenmill.train.samples import SampleReader
from tokenmill.train.schedule import steps_per_epoch

log = logging.getLogger(__name__)

MAX_CONSECUTIVE_FAULTS = 100
_UNREADABLE = (SampleError, StorageError, ManifestError, ValueError)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSample:
    """One document or piece that a rank was given; `fault` says why it could not be read."""

    pack: int
    slot: int
    key: str
    shard: str
    sample: int
    start: int
    length: int
    template: str
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one rank computes in one optimizer step, and what the whole step weighs.

    `weight` and `num_tokens` are those of the global batch, from the plan: no rank needs to ask another.
    """

    number: int
    epoch: int
    micro_batches: list[PackArrays]
    weight: float
    num_tokens: int
    squares: int
    samples: list[ReadSample]

    @property
    def faults(self) -> list[ReadSample]:
        return [sample for sample in self.samples if sample.fault]


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
        read_ahead_steps: int = 2,
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
        self._micro_packs = min(micro_packs, -(-global_packs // world))
        self._attention_share = attention_share
        self._threads, self._read_ahead = threads, read_ahead_steps
        self._reader = SampleReader(plan.folder.store, plan.index_of)
        self._faults = _FaultBudget()

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.plan.num_packs, self.global_packs)

    @property
    def micro_steps(self) -> int:
        """Micro-steps in a full step, the same on every rank."""
        return -(-self.global_packs // (self.world * self._micro_packs))

    def packs_of(self, step: int) -> list[int]:
        """Return the packs that a step consumes on all ranks together; the last step of an epoch may have fewer."""
        first = step % self.steps_per_epoch * self.global_packs
        return list(range(first, min(first + self.global_packs, self.plan.num_packs)))

    def step(self, number: int) -> Step:
        """Read and assemble this rank's part of a step."""
        packs = self.packs_of(number)
        costs = [self.plan.cost(pack) for pack in packs]
        hands = deal([cost.cost(self._attention_share) for cost in costs], self.world, self._micro_packs)[self.rank]
        hands += [[None] * self._micro_packs] * (self.micro_steps - len(hands))
        samples: list[ReadSample] = []
        micro_batches = []
        for hand in hands:
            arrays = [self._pack(packs[dealt], samples) if dealt is not None else self._filler() for dealt in hand]
            micro_batches.append(join_packs(arrays))
        return Step(
            number=number,
            epoch=number // self.steps_per_epoch,
            micro_batches=micro_batches,
            weight=sum(cost.weight for cost in costs),
            num_tokens=sum(cost.tokens for cost in costs),
            squares=sum(cost.squares for cost in costs),
            samples=samples,
        )

    def steps(self, start: int, stop: int) -> Generator[Step, None, None]:
        """Yield steps [start, stop), read ahead by threads; order and content do not depend on them."""
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="loader")
        ahead: deque[Future[Step]] = deque()
        try:
            for number in range(start, stop):
                while len(ahead) < self._read_ahead and number + len(ahead) < stop:
                    ahead.append(pool.submit(self.step, number + len(ahead)))
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

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
        """Return the step to go on with; raises RecipeError naming the fields if the state is of another plan."""
        mine = self.state(0).to_json()
        fixed = ("plan_id", "phase", "global_packs")
        differing = [f"{name} {state.get(name)!r} ≠ {mine[name]!r}" for name in fixed if state.get(name) != mine[name]]
        if differing:
            raise RecipeError(f"train: the checkpoint is of another plan or step size: {', '.join(differing)}")
        return int(state["epoch"]) * self.steps_per_epoch + int(state["next_pack"]) // self.global_packs

    def _filler(self) -> PackArrays:
        return filler_pack(self.vocabulary.pad)

    def _pack(self, pack: int, samples: list[ReadSample]) -> PackArrays:
        documents = []
        for slot, placed in enumerate(self.plan.documents(pack)):
            document, key, fault = self._document(placed)
            documents.append(document)
            samples.append(
                ReadSample(pack=pack, slot=slot, key=key, shard=placed.shard, sample=placed.sample, start=placed.start,
                           length=placed.length, template=placed.template, fault=fault)
            )  # fmt: skip
        return build_pack(documents, self.plan.context, self.vocabulary.pad)

    def _document(self, placed: Placed) -> tuple[Assembled, str, str | None]:
        """Assemble one document; an unreadable one becomes as much padding, of weight 0, in its place."""
        try:
            document, key = self._assemble(placed)
        except _UNREADABLE as error:
            self._faults.add(placed, error)
            blank = Assembled(
                np.full(placed.length, self.vocabulary.pad, np.int32), np.zeros(placed.length, np.float32)
            )
            return blank, "", str(error)
        self._faults.clear()
        return document, key, None

    def _assemble(self, placed: Placed) -> tuple[Assembled, str]:
        sample = self._reader.read(placed.shard, placed.sample)
        segments = take_frames(sample.segments, placed.frame, placed.frames) if placed.frames else sample.segments
        document = assemble(
            segments,
            sample.text_ids,
            sample.codes,
            placed.template,
            self.vocabulary,
            placed.variant,
            self.plan.description["vision_weight"],
            self.plan.description["text_weight"],
        ).piece(placed.start, placed.length)
        return document, sample.key


class _FaultBudget:
    """Bears single unreadable samples, not a whole unreadable store."""

    def __init__(self) -> None:
        self._consecutive = 0
        self._lock = threading.Lock()

    def clear(self) -> None:
        if self._consecutive:
            with self._lock:
                self._consecutive = 0

    def add(self, placed: Placed, error: Exception) -> None:
        """Count an unreadable sample; raises RunError after too many in a row."""
        log.warning("%s, sample %d: %s; it keeps its place with weight 0", placed.shard, placed.sample, error)
        with self._lock:
            self._consecutive += 1
            if self._consecutive >= MAX_CONSECUTIVE_FAULTS:
                raise RunError(
                    f"{self._consecutive} samples in a row cannot be read, last of {placed.shard}: {error}"
                ) from error
