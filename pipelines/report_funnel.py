"""The first part of the report: what went in, what was kept, and every loss with its reason.

Bars of a source share one scale, so they narrow as the source does. Under them stand the sums that must hold: in each
record in = kept + dropped + failed, and each stage takes in what the one before gave.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import polars as pl

from tokenmill.manifests.records import Counts
from tokenmill.pipelines.report_charts import Part, stacked_bar
from tokenmill.pipelines.report_data import Run, StageCounts
from tokenmill.pipelines.report_html import Child, Markup, count, element, join, note, section, table

_VERBS = {
    "ingest": "index",
    "split": "cut into clips",
    "score": "score",
    "select": "select",
    "choose": "caption",
    "tokenize": "tokenize",
}


def funnel_section(run: Run) -> Markup:
    """Draw the funnel of every source."""
    cards = [_source_card(run, source, run.funnel(source)) for source in run.sources]
    return section(
        "funnel",
        "Funnel",
        _legend(),
        element("div", cards, class_="cards"),
        note(
            "Every stage checks in = kept + dropped + failed in each of its records. Select takes in all samples that "
            "were indexed, so one that failed while being scored is listed at both."
        ),
    )


def _legend() -> Markup:
    kinds = (("kept", "kept"), ("dropped", "dropped by a rule or as a copy"), ("failed", "failed: a broken sample"))
    return element("p", *(element("span", text, class_=f"key {kind}") for kind, text in kinds), class_="legend")


def _source_card(run: Run, source: str, lines: list[StageCounts]) -> Markup:
    settings = run.chain.recipe.sources[source]
    title = element("h3", source, " ", element("small", f"{settings.kind} · {run.modality(source)}"))
    if not lines:
        return element("article", title, note("Nothing is indexed yet."), class_="card")
    whole = max(line.counts.rows_in for line in lines) or 1
    return element("article", title, *(_stage_line(line, whole) for line in lines), _check(lines), class_="card")


def _stage_line(line: StageCounts, whole: int) -> Markup:
    counts = line.counts
    parts = [
        Part(value=counts.kept, kind="kept", title=f"kept {count(counts.kept)}"),
        *(Part(value=n, kind="dropped", title=f"dropped, {why}: {count(n)}") for why, n in counts.dropped.items()),
        *(Part(value=n, kind="failed", title=f"failed, {why}: {count(n)}") for why, n in counts.failed.items()),
    ]
    chips = [
        *(
            element("span", f"{why} ", element("b", count(n)), class_="chip dropped")
            for why, n in _most(counts.dropped)
        ),
        *(element("span", f"{why} ", element("b", count(n)), class_="chip failed") for why, n in _most(counts.failed)),
    ]
    label = f"{line.stage}: {counts.rows_in} in, {counts.kept} kept"
    became = _clips(line) if line.stage == "split" else ""
    return element(
        "div",
        element("div", element("b", _VERBS[line.stage]), element("span", f"{count(counts.rows_in)} in"), class_="row"),
        stacked_bar(parts, whole, label),
        element("div", element("span", f"{count(counts.kept)} kept{became}"), *chips, class_="row chips"),
        class_="stage",
    )


def _clips(line: StageCounts) -> str:
    """Say what films became: clips, of how many scenes, and how much of the film is in them."""
    totals = line.totals
    text = f" → {count(line.counts.out)} clips"
    if "scenes" in totals:
        text += f" of {count(totals['scenes'])} scenes ({count(totals['short_scenes'])} too short)"
        text += f", {_hours(totals['clip_seconds'])} of {_hours(totals['seconds'])}"
    return text


def _hours(seconds: int) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"


def _most(reasons: Mapping[str, int], limit: int = 8) -> list[tuple[str, int]]:
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(number for _, number in ordered[limit:])
    return [*ordered[:limit], *([(f"{len(ordered) - limit} more reasons", rest)] if rest else [])]


def _check(lines: list[StageCounts]) -> Markup:
    faults = sum_faults(lines)
    if faults:
        return element("p", "✗ ", "; ".join(faults), class_="check bad")
    records = sum(line.units for line in lines)
    return element("p", f"✓ sums hold in {count(records)} records of {len(lines)} stages", class_="check good")


def sum_faults(lines: list[StageCounts]) -> list[str]:
    """Name every sum that does not hold: within a stage, and from one stage to the next."""
    faults = [f"{line.stage}: rows are missing" for line in lines if not _adds_up(line.counts)]
    chained = [line for line in lines if line.stage != "score"]
    for before, after in pairwise(chained):
        if before.stage != "ingest" or after.stage != "split":  # a long film is several ranges
            given = before.counts.out if before.stage in ("ingest", "split") else before.counts.kept
            if given != after.counts.rows_in:
                faults.append(f"{after.stage} took in {after.counts.rows_in} of the {given} that {before.stage} gave")
    return faults


def _adds_up(counts: Counts) -> bool:
    return counts.rows_in == counts.kept + sum(counts.dropped.values()) + sum(counts.failed.values())


def losses_section(run: Run) -> Markup:
    """List every reason a sample was lost for, with how many and examples."""
    rows = [row for source in run.sources for row in (*_failed_rows(run, source), *_dropped_rows(run, source))]
    if not rows:
        return section("losses", "Losses", note("Nothing was lost."))
    head = ("source", "stage", "", "reason", "samples", "what it says", "for example")
    return section("losses", "Losses", table(head, rows, numbers=(4,)))


def _failed_rows(run: Run, source: str) -> Iterator[list[Child]]:
    for stage, reason, number, examples in run.first_failures(source):
        message = examples["fail_message"][0] if examples.height else ""
        yield [source, stage, element("span", "failed", class_="chip failed"), reason, count(number), message,
               _keys(examples)]  # fmt: skip


def _dropped_rows(run: Run, source: str) -> Iterator[list[Child]]:
    rules: Mapping[str, str] = run.chain.rules_of[source].texts if "select" in run.stages else {}
    for stage in ("split", "select"):
        for snapshot in run.snapshots(stage).get(source, ()):
            for reason, number in snapshot.counts.dropped.items():
                examples = _dropped_examples(snapshot, reason)
                yield [source, stage, element("span", "dropped", class_="chip dropped"), reason, count(number),
                       _meaning(reason, rules), _keys(examples)]  # fmt: skip


def _dropped_examples(snapshot: Any, reason: str) -> pl.DataFrame:
    commit = next(commit for commit in snapshot.commits if reason in commit.counts.dropped)
    rows: pl.DataFrame = snapshot.folder.read_rows(commit)
    return rows.filter(pl.col("drop_reason") == reason).head(3)


def _meaning(reason: str, rules: Mapping[str, str]) -> Child:
    """Say what a drop reason means: the rule that was not fulfilled, or of what the sample is a copy."""
    if reason.endswith(":null") and reason.removesuffix(":null") in rules:
        return join("the score is missing: ", element("code", rules[reason.removesuffix(":null")]))
    if reason in rules:
        return join("does not fulfil ", element("code", rules[reason]))
    return {
        "no_long_scene": "every scene of it is shorter than min_seconds",
        "no_scene_starts": "a range of a film in the middle of a scene or of black: the range before has the scene",
        "no_picture": "all black",
        "exact_duplicate": "the same bytes as a sample that is kept",
        "near_duplicate": "looks like a sample that is kept (perceptual hash)",
    }.get(reason, "")


def _keys(examples: pl.DataFrame) -> Child:
    return [element("code", key, class_="sample") for key in examples["key"]]
