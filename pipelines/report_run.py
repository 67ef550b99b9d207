"""The frame of the report: what ran, how long it took, and the digests by which anyone can check it."""

from __future__ import annotations

import json
import platform
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tokenmill import __version__
from tokenmill.errors import StorageError
from tokenmill.manifests.identity import digest_of, short
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.report_charts import Part, stacked_bar
from tokenmill.pipelines.report_data import STAGES, Run
from tokenmill.pipelines.report_html import (
    Child,
    Markup,
    count,
    element,
    facts_list,
    join,
    note,
    seconds,
    section,
    table,
)

_LIBRARIES = ("torch", "transformers", "ray", "deepspeed", "polars", "numpy", "pillow", "av")
_LOGS_A_FOLDER = 50
_PHASES = 6  # colours in the style sheet


def header(run: Run, facts: Sequence[tuple[str, Child]]) -> Markup:
    """Say what this is a report of, with the figures that matter most."""
    recipe = run.chain.recipe
    return element(
        "header",
        element("p", "tokenmill", class_="brand"),
        element("h1", "Run report"),
        element("p", element("code", recipe.root), class_="root"),
        element("p", _versions(), class_="small"),
        facts_list(facts, big=True),
    )


def _versions() -> str:
    known = [f"tokenmill {__version__}", f"Python {platform.python_version()}"]
    for name in _LIBRARIES:
        try:
            known.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC · " + " · ".join(known)


def counted(run: Run) -> list[tuple[str, Child]]:
    """Return how many samples came in, were kept and were lost, over all sources and up to the last complete stage."""
    lines = [line for source in run.sources for line in run.funnel(source)]
    came_in = sum(found[0].counts.rows_in for source in run.sources if (found := run.funnel(source)))
    dropped = sum(sum(line.counts.dropped.values()) for line in lines)
    failed = sum(sum(line.counts.failed.values()) for line in lines if line.stage != "score")
    left = sum(found[-1].counts.out for source in run.sources if (found := run.funnel(source)))
    facts: list[tuple[str, Child]] = [
        ("raw samples", count(came_in)),
        ("kept", count(left)),
        ("dropped", count(dropped)),
        ("failed", count(failed)),
    ]
    tokenized = [found[0].totals for found in run.snapshots("tokenize").values()]
    if tokenized:
        facts.append(("vision codes", count(sum(totals.get("codes", 0) for totals in tokenized))))
        facts.append(("text ids", count(sum(totals.get("text_ids", 0) for totals in tokenized))))
    for phase, plan in run.plans.items():
        filled = f"{100 * plan.description['fill']:.1f} % full"
        name = "packs" if len(run.plans) == 1 else f"packs of {phase}"
        facts.append((name, element("span", f"{count(plan.num_packs)} ", element("small", filled))))
    return facts


def timings_section(run: Run, metrics: Sequence[Mapping[str, Any]]) -> Markup:
    """Show how long every stage took and on what, from the logs beside the data and the rows of training."""
    rows = [*_timing_rows(run), *_training_row(metrics)]
    if not rows:
        return section("timings", "Timings", note("There are no logs."))
    head = ("stage", "runs", "units", "rows", "wall", "CPU", "rows a second", "where the workers' time went")
    return section(
        "timings",
        "Timings",
        table(head, rows, numbers=(1, 2, 3, 4, 5, 6)),
        note("Sums over all runs that computed something; a run that found everything done leaves no log."),
    )


def _timing_rows(run: Run) -> Iterator[list[Child]]:
    for stage in STAGES:
        logs = {(log["title"], log["started"]): log for folder in _folders(run, stage) for log in _logs(folder)}
        by_title: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for _, log in sorted(logs.items()):
            by_title[log["title"]].append(log)
        for title, found in by_title.items():
            phases: Counter[str] = Counter()
            for log in found:
                phases.update(log["phases_s"])
            wall_s, cpu_s, rows = (sum(log[name] for log in found) for name in ("wall_s", "cpu_s", "rows"))
            yield [title, count(len(found)), count(sum(log["units"] for log in found)), count(rows), seconds(wall_s),
                   seconds(cpu_s), count(rows / wall_s) if wall_s else "–", _phases(phases)]  # fmt: skip


def _training_row(metrics: Sequence[Mapping[str, Any]]) -> Iterator[list[Child]]:
    spent = sum(row.get("step_s", 0.0) for row in metrics)
    if spent:
        waited = sum(row.get("data_wait_s", 0.0) for row in metrics)
        ids = sum(row.get("tokens", 0) for row in metrics)
        yield ["train (ids)", "–", count(len(metrics)), count(ids), seconds(spent), "–", count(ids / spent),
               _phases({"compute": spent - waited, "wait for data": waited})]  # fmt: skip


def _phases(phases: Mapping[str, float]) -> Markup:
    ordered = sorted(phases.items(), key=lambda item: -item[1])
    shown = [(name, value) for name, value in ordered if value > 0.005 * sum(phases.values())][:_PHASES]
    parts = [
        Part(value=value, kind=f"phase{number}", title=f"{name} {seconds(value)}")
        for number, (name, value) in enumerate(shown)
    ]
    told = ", ".join(f"{name} {seconds(value)}" for name, value in shown)
    keys = [element("span", f"{part.title}", class_=f"key {part.kind}") for part in parts]
    return join(stacked_bar(parts, sum(value for _, value in shown), told), element("div", keys, class_="legend small"))


def _folders(run: Run, stage: str) -> list[StageDir]:
    if stage == "plan":
        return [plan.folder for plan in run.plans.values()]
    return [snapshot.folder for found in run.snapshots(stage).values() for snapshot in found]


def _logs(folder: StageDir) -> Iterator[dict[str, Any]]:
    for entry in folder.store.files(folder.at("logs"))[-_LOGS_A_FOLDER:]:
        try:
            log = json.loads(folder.store.read_bytes(entry.path))
        except (StorageError, ValueError):
            continue
        if {"title", "started", "wall_s", "cpu_s", "rows", "units", "phases_s"} <= set(log):
            yield log


def digests_section(run: Run) -> Markup:
    """List every snapshot by its digest, and say how to check them."""
    rows: list[list[Child]] = []
    digests: list[str] = []
    for stage in STAGES[:-1]:
        for source, snapshots in run.snapshots(stage).items():
            for snapshot in snapshots:
                rows.append(_digest_row(stage, source, snapshot))
                digests.append(snapshot.digest)
    for plan in run.plans.values():
        about = plan.description
        name = element("code", short(about["snapshot"]), title=about["snapshot"])
        folder = element("code", plan.folder.path)
        rows.append(["plan", about["phase"], folder, name, count(about["num_windows"])])
        digests.append(about["snapshot"])
    if not rows:
        return section("digests", "Digests", note("Nothing is complete yet."))
    command = f"tokenmill verify {run.chain.recipe.root} --deep"
    return section(
        "digests",
        "Digests",
        element("p", "Digest of the run: ", element("code", digest_of(digests))),
        element("p", "A snapshot's digest covers its records, and through them every byte. To read them all again: "),
        element("pre", element("code", command)),
        element(
            "details",
            element("summary", f"{len(rows)} snapshots"),
            table(("stage", "source", "folder", "snapshot", "units"), rows, numbers=(4,)),
        ),
    )


def _digest_row(stage: str, source: str, snapshot: Snapshot) -> list[Child]:
    name = element("code", short(snapshot.digest), title=snapshot.digest)
    scorer = snapshot.folder.config.settings.get("scorer")
    return [
        f"{stage}, {scorer}" if scorer else stage,
        source,
        element("code", snapshot.folder.path),
        name,
        count(len(snapshot.commits)),
    ]
