"""The funnel of a selection, counted from annotations alone: what each rule drops in its turn, and what it would alone.

Nothing is written and no table is kept: a slice becomes a dozen numbers, so 10 million samples take seconds and the
memory of a few slices. Copies are counted as the stage `duplicates` decided them; what passes now and was not compared
then is counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from tokenmill.filters.rules import Rules
from tokenmill.manifests.records import Commit
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.scored import Scored


@dataclass(kw_only=True)
class RuleCounts:
    """What one rule does to the samples that come to it, and to all good samples if it stood alone.

    Attributes:
        reached: samples that passed the rules before.
        dropped: of these; `unknown` of them because a score is missing.
        rescued: of these, kept by the rule's rescue.
        alone: dropped if this were the only rule; `only`: dropped by this rule and no other, back if it went.
    """

    reached: int = 0
    dropped: int = 0
    unknown: int = 0
    rescued: int = 0
    alone: int = 0
    only: int = 0

    def __iadd__(self, other: RuleCounts) -> RuleCounts:
        for name, number in vars(other).items():
            setattr(self, name, getattr(self, name) + number)
        return self

    def to_json(self) -> dict[str, int]:
        return {"in": self.reached, "dropped": self.dropped, "of_these_null": self.unknown, "rescued": self.rescued,
                "left": self.reached - self.dropped, "alone": self.alone, "only": self.only}  # fmt: skip


@dataclass(kw_only=True)
class Funnel:
    """What becomes of some samples: `rows_in = failed + taken_down + dropped by rules
    + contaminated + duplicates + kept`.

    `undecided` are those among the kept that no search for copies has seen.
    """

    rows_in: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    taken_down: int = 0
    rules: dict[str, RuleCounts] = field(default_factory=dict)
    contaminated: int = 0
    duplicates: Counter[str] = field(default_factory=Counter)
    undecided: int = 0
    kept: int = 0

    def __iadd__(self, other: Funnel) -> Funnel:
        self.rows_in, self.taken_down = self.rows_in + other.rows_in, self.taken_down + other.taken_down
        self.contaminated += other.contaminated
        self.undecided, self.kept = self.undecided + other.undecided, self.kept + other.kept
        self.failed.update(other.failed)
        self.duplicates.update(other.duplicates)
        for name, counts in other.rules.items():
            self.rules.setdefault(name, RuleCounts())
            self.rules[name] += counts
        return self

    def to_json(self) -> dict[str, Any]:
        return {
            "in": self.rows_in,
            "failed": dict(sorted(self.failed.items())),
            "taken_down": self.taken_down,
            "rules": {name: counts.to_json() for name, counts in self.rules.items()},
            "contaminated": self.contaminated,
            "duplicates": dict(sorted(self.duplicates.items())),
            "kept": self.kept,
            "undecided": self.undecided,
        }


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A slice and the record of its copies, where they were decided."""

    part: Scored
    duplicates: tuple[StageDir, Commit] | None = None


def count_funnels(slices: Sequence[Judged], rules: Sequence[Rules], threads: int) -> list[Funnel]:
    """Count the slices of one source under several sets of rules, each table being read once."""
    totals = [Funnel(rules={name: RuleCounts() for name in one.texts}) for one in rules]
    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(lambda one: count_slice(one, rules), slices):
            for total, funnel in zip(totals, found, strict=True):
                total += funnel
    return totals


def count_slice(judged: Judged, rules: Sequence[Rules]) -> list[Funnel]:
    """Count one slice under several sets of rules."""
    table = judged.part.verdict_table(frozenset().union(*(one.columns for one in rules)))
    table = table.with_columns(
        judged.part.is_excluded().alias("taken_down"), judged.part.is_contaminated().alias("contaminated")
    )
    copies = None
    if judged.duplicates is not None:
        folder, commit = judged.duplicates
        rows = folder.read_rows(commit, ["key", "drop_reason"]).rename({"drop_reason": "copy"})
        rows = rows.with_columns(pl.lit(True).alias("compared"))
        copies = table.select("key").join(rows, on="key", how="left", maintain_order="left").select("copy", "compared")
    return [_counted(table, one, copies) for one in rules]


def _counted(table: pl.DataFrame, rules: Rules, copies: pl.DataFrame | None) -> Funnel:
    judged = table.select("fail_reason", "taken_down", "contaminated").hstack(rules.judge(table))
    if copies is not None:
        judged = judged.hstack(copies)
    failed = pl.col("fail_reason").is_not_null()
    good = ~failed & ~pl.col("taken_down")
    judged = judged.with_columns(good.alias("good"), (good & pl.col("reason").is_null()).alias("passes"))
    contaminated = pl.col("passes") & pl.col("contaminated")
    counts = judged.select(
        contaminated.sum().alias("contaminated"),
        (~failed & pl.col("taken_down")).sum().alias("taken_down"),
        pl.col("passes").sum(),
        *_rule_sums(rules),
    ).row(0, named=True)
    funnel = Funnel(
        rows_in=table.height,
        failed=_reasons(judged.filter(failed)["fail_reason"]),
        taken_down=counts["taken_down"],
        rules={name: RuleCounts(**_of_rule(counts, name)) for name in rules.texts},
        contaminated=counts["contaminated"],
        kept=counts["passes"] - counts["contaminated"],
    )
    if copies is not None:
        passing = judged.filter(pl.col("passes") & ~pl.col("contaminated"))
        funnel.duplicates = _reasons(passing["copy"])
        funnel.kept -= sum(funnel.duplicates.values())
        funnel.undecided = passing["compared"].null_count()
    return funnel


def _rule_sums(rules: Rules) -> Iterator[pl.Expr]:
    names = list(rules.texts)
    passes = {name: pl.col(f"passes:{name}").fill_null(False) for name in names}
    good = pl.col("good")
    for number, name in enumerate(names):
        reached = pl.all_horizontal(good, *(passes[one] for one in names[:number]))
        others = pl.all_horizontal(good, *(passes[one] for one in names if one != name))
        rescued = pl.col(f"rescued:{name}") if name in rules.rescues else pl.lit(False)
        yield from (
            reached.sum().alias(f"reached:{name}"),
            (reached & ~passes[name]).sum().alias(f"dropped:{name}"),
            (reached & pl.col(f"passes:{name}").is_null()).sum().alias(f"unknown:{name}"),
            (reached & rescued).sum().alias(f"rescued:{name}"),
            (good & ~passes[name]).sum().alias(f"alone:{name}"),
            (others & ~passes[name]).sum().alias(f"only:{name}"),
        )


def _of_rule(counts: Mapping[str, int], name: str) -> dict[str, int]:
    return {what: counts[f"{what}:{name}"] for what in vars(RuleCounts())}


def _reasons(reasons: pl.Series) -> Counter[str]:
    return Counter(dict(reasons.drop_nulls().value_counts(name="number").iter_rows()))
