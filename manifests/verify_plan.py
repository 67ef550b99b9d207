"""Verify a plan: its windows against its description and themselves, and against what it reads.

Without `deep` only the plan's own tables and the records of the token snapshots are read, a window at a time. Deep also
reads every index, to assemble the lengths anew, and every archive, to compare its digest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import polars as pl

from tokenmill.errors import ManifestError, StorageError
from tokenmill.manifests.findings import Fault, shortened
from tokenmill.manifests.plans import Plan, read_named_table
from tokenmill.manifests.snapshots import units_table
from tokenmill.manifests.stagedir import read_table
from tokenmill.manifests.verify_plan_lengths import PlanChecks, length_faults
from tokenmill.manifests.verify_plan_sources import known_shards
from tokenmill.manifests.verify_window import (
    DOCUMENT,
    Expected,
    WindowSums,
    frame_gaps,
    piece_gaps,
    told_gap,
    window_faults,
)

REPLAN = "remove plan.json and its window's record and plan again"
_AHEAD = 2  # windows that are read while one is compared


def plan_faults(plan: Plan, checks: PlanChecks | None = None, *, deep: bool = False) -> list[Fault]:
    """Name every fault of a plan; reads all windows, one at a time.

    Args:
        checks: what other rooms know: the templates there are, and (deep) how long documents are.
        deep: compare the lengths with the segments in the indexes.
    """
    shards, faults = known_shards(plan)
    faults += _order_faults(plan)
    return faults + _Windows(plan, shards, checks or PlanChecks()).faults(deep=deep)


class _Windows:
    """Goes through a plan's windows, and remembers what has to agree between them."""

    def __init__(self, plan: Plan, shards: pl.DataFrame, checks: PlanChecks) -> None:
        told = plan.description
        self._plan, self._checks = plan, checks
        self._expected = Expected(
            context=plan.context,
            most_weight=max(told["vision_weight"], told["text_weight"]),
            shards=shards.select("shard", "source", "num_rows"),
            templates=checks.templates,
            continues=continues(plan),
        )
        self._sums = WindowSums()
        self._passes: Counter[tuple[str, int]] = Counter()
        self._gaps: list[tuple[str, str, pl.DataFrame]] = []  # where, of what, the gaps

    def faults(self, *, deep: bool) -> list[Fault]:
        faults: list[Fault] = []
        for row, documents in self._read(faults):
            where = self._plan.folder.at(row["documents"])
            told = [self._window(row, where, documents)]
            told += [length_faults(self._plan, documents, self._checks)] if deep else []
            for found in told:
                faults += shortened([Fault(where, what, REPLAN) for what in found], where)
        faults += self._gap_faults()
        return faults if faults else self._sum_faults()

    def _read(self, faults: list[Fault]) -> Iterator[tuple[dict[str, Any], pl.DataFrame]]:
        rows = list(self._plan.windows.iter_rows(named=True))
        with ThreadPoolExecutor(_AHEAD) as pool:
            waiting: list[Future[pl.DataFrame]] = []
            for number, row in enumerate(rows):
                while len(waiting) < min(_AHEAD, len(rows) - number):
                    name = rows[number + len(waiting)]["documents"]
                    waiting.append(pool.submit(_table, self._plan, name))
                try:
                    yield row, waiting.pop(0).result()
                except (ManifestError, StorageError) as error:
                    faults.append(_unreadable(error))

    def _window(self, row: dict[str, Any], where: str, documents: pl.DataFrame) -> Iterator[str]:
        try:
            packs = _table(self._plan, row["packs"])
        except (ManifestError, StorageError) as error:
            yield str(error)
            return
        if len(packs) != row["num_packs"]:
            yield f"has {len(packs):,} packs, windows.parquet says {row['num_packs']:,}"
        yield from window_faults(documents, packs, self._expected)
        self._sums.add(documents)
        passes = documents.select(pl.col("shard").cast(pl.String), "repetition").unique()
        self._passes.update(passes.rows())
        for what, gaps in (("id", piece_gaps), ("frame", frame_gaps)):
            found = gaps(documents, continues=self._expected.continues)
            if len(found):
                self._gaps.append((where, what, found))

    def _gap_faults(self) -> list[Fault]:
        """Tell the gaps; where one pass over a shard is in several windows, its documents are looked at together."""
        several = [key for key, windows in self._passes.items() if windows > 1]
        shared = pl.DataFrame(several, schema={"shard": pl.String, "repetition": pl.Int32}, orient="row")
        faults = []
        for where, what, gaps in self._gaps:
            alone = gaps.join(shared, on=["shard", "repetition"], how="anti")
            faults += shortened(
                [Fault(where, told_gap(row, what), REPLAN) for row in alone.iter_rows(named=True)], where
            )
        return faults + (self._shared_faults(shared) if len(shared) else [])

    def _shared_faults(self, shared: pl.DataFrame) -> list[Fault]:
        parts = []
        for name in self._plan.windows["documents"]:
            table = _table(self._plan, name, (*DOCUMENT, "frames", "start", "length"))
            table = table.with_columns(pl.col("shard").cast(pl.String))
            parts.append(table.join(shared, on=["shard", "repetition"], how="semi"))
        together, where = pl.concat(parts), self._plan.folder.at("windows.parquet")
        faults = []
        for what, gaps in (("id", piece_gaps), ("frame", frame_gaps)):
            found = gaps(together, continues=self._expected.continues)
            faults += [Fault(where, told_gap(row, what), REPLAN) for row in found.iter_rows(named=True)]
        return shortened(faults, where)

    def _sum_faults(self) -> list[Fault]:
        """Compare the sums that plan.json tells with the tables."""
        told, found = self._plan.description, self._sums
        pairs = [
            ("totals.tokens", told["totals"].get("tokens"), found.tokens),
            ("totals.pieces", told["totals"].get("pieces"), found.pieces),
            *((f"sources.{n}.tokens", s.get("tokens"), found.by_source.get(n, 0)) for n, s in told["sources"].items()),
            *((f"templates.{n}.tokens", t.get("tokens"), found.by_template.get(n, 0))
              for n, t in told["templates"].items()),
        ]  # fmt: skip
        return [
            Fault(self._plan.folder.at("plan.json"), f"{name} is {said:,}, its windows have {real:,}", REPLAN)
            for name, said, real in pairs
            if said is not None and said != real
        ]


def continues(plan: Plan) -> bool:
    """Say whether a plan goes on from another, and holds only what was left of some documents."""
    return bool(plan.description.get("continues"))


def _order_faults(plan: Plan) -> list[Fault]:
    """Compare the order of the windows with itself, the description and the plan's own snapshot."""
    where, rows = plan.folder.at("windows.parquet"), plan.windows
    faults = []
    due = (rows["num_packs"].cum_sum() - rows["num_packs"]).to_list()
    for unit, first, expected in zip(rows["unit"], rows["first_pack"], due, strict=True):
        if first != expected:
            faults.append(Fault(where, f"window {unit} begins at pack {first}, expected {expected}", REPLAN))
    total = int(rows["num_packs"].sum())
    if total != plan.num_packs:
        faults.append(Fault(where, f"has {total:,} packs, plan.json says {plan.num_packs:,}", REPLAN))
    name = plan.folder.at(f"snapshots/{plan.description['snapshot'][:16]}.parquet")
    try:
        units = read_table(plan.folder.store, name, units_table(()).columns)["unit"].to_list()
    except (ManifestError, StorageError) as error:
        return [*faults, _unreadable(error)]
    if units != rows["unit"].to_list():
        faults.append(Fault(where, f"its windows are not the units of {name}", REPLAN))
    return shortened(faults, where)


def _table(plan: Plan, name: str, columns: Iterable[str] | None = None) -> pl.DataFrame:
    return read_named_table(plan.folder.store, plan.folder.at(name), columns)


def _unreadable(error: Exception) -> Fault:
    path, _, what = str(error).partition(": ")
    return Fault(path, what, REPLAN)
