"""Where a plan is left in its middle: which of its documents were consumed, and which remain.

A plan that continues another says so in its settings and its description (`continues`): the plan before, the optimizer
step of the whole run at which it takes over, and the packs of a step. Steps are counted over the whole run, so a chain
of plans has one numbering, which is that of the checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl
from polars import selectors

from tokenmill.errors import ManifestError
from tokenmill.manifests.identity import short
from tokenmill.manifests.plans import Plan, open_plan, read_named_table
from tokenmill.manifests.storage import Store

DOCUMENT_KEY = ("source", "shard", "sample", "repetition", "frame", "frames", "template", "variant")
"""What rows of a plan have in common that are pieces of one document."""
SAME_SHARD = ("shard", "index", "shard_sha256", "index_sha256")
"""What two plans have in common that read the same shard: others may lie under the same name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BorderReference:
    """A border whose plan is named, not opened."""

    folder: str
    step: int
    global_packs: int

    def open(self, store: Store) -> Border:
        return Border(plan=open_plan(store, self.folder), step=self.step, global_packs=self.global_packs)


@dataclass(frozen=True, kw_only=True)
class Border:
    """A place between two steps of a plan; `step` counts optimizer steps of the whole run."""

    plan: Plan
    step: int
    global_packs: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.plan.num_packs // self.global_packs)

    @property
    def own_step(self) -> int:
        """Steps of this plan that were done."""
        return self.step - first_step(self.plan.description)

    @property
    def first_pack(self) -> int:
        """The first pack that remains of the epoch; where an epoch ends, none does."""
        if self.own_step == 0:
            return 0
        return min(((self.own_step - 1) % self.steps_per_epoch + 1) * self.global_packs, self.plan.num_packs)

    def reference(self) -> BorderReference:
        """Return it as a few words, for who opens the plan elsewhere."""
        return BorderReference(folder=self.plan.folder.path, step=self.step, global_packs=self.global_packs)

    def identity(self) -> dict[str, Any]:
        """Return what of it is part of the next plan's identity."""
        return {"plan": self.plan.plan_id, "step": self.step, "global_packs": self.global_packs}

    def to_json(self) -> dict[str, Any]:
        """Return what the next plan's description says of it: enough to know a loader's state that stands there."""
        return {
            **self.identity(),
            "folder": self.plan.folder.path,
            "phase": self.plan.phase,
            "epoch": self.own_step // self.steps_per_epoch,
            "next_pack": self.own_step % self.steps_per_epoch * self.global_packs,
        }


def first_step(description: Mapping[str, Any]) -> int:
    """Return the optimizer step, counted over the whole run, at which a plan takes over; 0 where it continues none."""
    continues = description.get("continues")
    return int(continues["step"]) if continues else 0


def border_before(plan: Plan) -> Border | None:
    """Open the plan that one continues; None where there is none. Raises ManifestError if it is gone or another."""
    continues = plan.description.get("continues")
    if not continues:
        return None
    before = open_plan(plan.folder.store, continues["folder"])
    if before.plan_id != continues["plan"]:
        raise ManifestError(
            f"{continues['folder']}: is plan {short(before.plan_id)}, and {plan.folder.path} continues "
            f"{short(continues['plan'])}"
        )
    return Border(plan=before, step=int(continues["step"]), global_packs=int(continues["global_packs"]))


def borders_before(border: Border) -> Iterator[Border]:
    """Yield a border and those before it in a chain of plans, the newest first; raises as `border_before`."""
    found: Border | None = border
    while found is not None:
        yield found
        found = border_before(found.plan)


def plans_before(store: Store, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield folder and description of a finished plan and of those it goes back to, as far as they are still there."""
    while path and store.exists(f"{path}/plan.json"):
        description = open_plan(store, path).description
        yield path, description
        path = (description.get("continues") or {}).get("folder", "")


def consumed_rows(border: Border, columns: tuple[str, ...]) -> Iterator[pl.DataFrame]:
    """Yield some columns of the rows before a border, window by window."""
    for number, first in enumerate(border.plan.windows["first_pack"]):
        if first >= border.first_pack:
            return
        yield window_rows(border.plan, number, columns, pl.col("pack") < border.first_pack - first)


def remaining_rows(border: Border, number: int, columns: tuple[str, ...]) -> pl.DataFrame:
    """Return some columns of the rows of window `number` that lie behind a border."""
    local = border.first_pack - border.plan.windows["first_pack"][number]
    return window_rows(border.plan, number, columns, pl.col("pack") >= local)


def window_rows(plan: Plan, number: int, columns: tuple[str, ...], which: pl.Expr | None = None) -> pl.DataFrame:
    """Return some columns of the rows of a window, names as strings; `which` may choose among them by `pack`."""
    name = plan.folder.at(plan.windows["documents"][number])
    rows = read_named_table(plan.folder.store, name, dict.fromkeys(("pack", *columns)))
    rows = rows if which is None else rows.filter(which)
    return rows.with_columns(selectors.by_dtype(pl.Categorical, pl.Enum).cast(pl.String)).select(columns)
