"""What the loader gives for one optimizer step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from tokenmill.train.packs import PackArrays
from tokenmill.train.step_documents import StepDocuments


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


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one rank computes in one optimizer step, and what the whole step weighs.

    `weight` and `num_tokens` are those of the global batch, from the plan: no rank needs to ask another. `tell_samples`
    makes `samples` when somebody asks: a tenth of a millisecond a document, a hundred times what reading it took.
    `tell_documents` makes `documents` likewise, from columns of the plan.
    """

    number: int
    epoch: int
    micro_batches: list[PackArrays]
    weight: float
    num_tokens: int
    squares: int
    faults: list[ReadSample]
    tell_samples: Callable[[], list[ReadSample]]
    tell_documents: Callable[[], StepDocuments]

    @cached_property
    def samples(self) -> list[ReadSample]:
        """Every document of this rank's part, in the order in which it stands there."""
        return self.tell_samples()

    @cached_property
    def documents(self) -> StepDocuments:
        """What the plan says of the step's documents: their templates, and what each template weighs."""
        return self.tell_documents()
