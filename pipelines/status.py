"""Progress of a recipe from the commit records alone: no Ray, no model, no pixel.

Stages are walked in order and only read. The first one that lacks units shows how far it is; what comes behind it
cannot be counted yet, because its units follow from what that stage will keep.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tokenmill.errors import RecipeError, RunError
from tokenmill.manifests.ledger import bytes_of, sum_of_counts, sum_of_numbers
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.records import Commit
from tokenmill.manifests.rollups import read_ledger
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.asked_totals import asked_in, column_folders, told_totals
from tokenmill.pipelines.chain import STAGES, Chain, ChainOptions
from tokenmill.pipelines.drawing_jobs import READ_ONLY, draw_jobs
from tokenmill.pipelines.plan_figures import told_plan
from tokenmill.pipelines.question_jobs import answer_jobs
from tokenmill.pipelines.runner import IncompleteStageError
from tokenmill.pipelines.tokens_clip import FITS
from tokenmill.recipe import Recipe

_RECENT_S = 600.0


def status_of(recipe: Recipe) -> dict[str, Any]:
    """Return a row for every stage and folder that is there: done and total units, counts, bytes, rate, ETA.

    `waiting` names the stages that cannot be counted yet; `refused` says why a plan cannot be made as the recipe
    asks, which shows only once there are tokens to count.
    """
    chain = Chain(recipe=recipe, options=ChainOptions(work=frozenset(), quiet=True))
    rows: list[dict[str, Any]] = []
    waiting: list[str] = []
    refused: dict[str, str] = {}
    for number, stage in enumerate(STAGES):
        try:
            rows += _finished(chain, stage)
        except IncompleteStageError as incomplete:
            for (folder, total), commits in zip(incomplete.folders, incomplete.known, strict=True):
                rows.append(_row(stage, folder, total, commits))
            waiting = list(STAGES[number + 1 :])
            break
        except RecipeError as error:
            if stage != "plan":  # where the recipe itself is wrong
                raise
            refused[stage] = str(error)
            waiting = list(STAGES[number:])
            break
    if any(row["stage"] == "caption" for row in rows):
        _tell_captions(chain, rows)
    rows += _jobs(recipe, waiting)
    return {"root": recipe.root, "stages": rows, "waiting": waiting, "refused": refused}


def _jobs(recipe: Recipe, waiting: list[str]) -> list[dict[str, Any]]:
    """Return the rows of tables of prompts and questions; a model that is not trained yet makes them wait."""
    rows: list[dict[str, Any]] = []
    kinds: dict[str, Callable[[], Mapping[str, Snapshot]]] = {
        "generate": lambda: draw_jobs(recipe, options=READ_ONLY),
        "answer": lambda: answer_jobs(recipe, options=READ_ONLY),
    }
    for stage, read in kinds.items():
        try:
            rows += [_row(stage, one.folder, len(one.commits), one.commits) for one in read().values()]
        except IncompleteStageError as incomplete:
            found = zip(incomplete.folders, incomplete.known, strict=True)
            rows += [_row(stage, folder, total, commits) for (folder, total), commits in found]
        except RunError:
            waiting.append(stage)
    return rows


def _tell_captions(chain: Chain, rows: Sequence[dict[str, Any]]) -> None:
    """Add the names of columns, and what those cost that ask somebody: in all, not for the samples kept now alone."""
    columns = column_folders(chain)
    asked = asked_in(columns)
    for row in rows:
        if row["stage"] == "caption" and row["folder"] in columns:
            row["what"] = ", ".join(columns[row["folder"]].names)
            if row["folder"] in asked:
                row["asked"] = asked[row["folder"]].to_json()
                row["asked"]["unanswered"] = row["totals"].get("unanswered", 0)  # of the samples that are kept now


def _finished(chain: Chain, stage: str) -> list[dict[str, Any]]:
    if stage == "plan":
        return [_plan_row(plan) for plan in chain.plans.values()]
    snapshots: Iterable[Snapshot] = chain.snapshots(stage)
    return [_row(stage, snapshot.folder, len(snapshot.commits), snapshot.commits) for snapshot in snapshots]


def _plan_row(plan: Plan) -> dict[str, Any]:
    row = _row("plan", plan.folder, len(plan.windows), read_ledger(plan.folder)[0].in_order_of_name())
    about = plan.description
    shown = ("num_packs", "context", "fill", "supply_bound", "longest", "window_mix", "cost_spread", "sources")
    return row | {"plan": {name: about[name] for name in shown if name in about}}


def _row(stage: str, folder: StageDir, total: int, commits: Sequence[Commit]) -> dict[str, Any]:
    rate = _units_per_s(folder) if len(commits) < total else None
    return {
        "stage": stage,
        "source": folder.source,
        "what": folder.config.settings["plan"]["phase"]
        if stage == "plan"
        else folder.config.settings.get("scorer", ""),
        "folder": folder.path,
        "done": len(commits),
        "total": total,
        "counts": sum_of_counts(commits).to_json(),
        "bytes": bytes_of(commits),
        "totals": sum_of_numbers(commits, "totals"),
        "film_s": sum(commit.totals.get("seconds", 0) for commit in commits) if stage in ("ingest", "split") else 0,
        "units_per_s": rate,
        "eta_s": (total - len(commits)) / rate if rate else None,
    }


def _units_per_s(folder: StageDir) -> float | None:
    """Return how fast records came in the last ten minutes, or None where the store tells no times."""
    times = [entry.modified_s for entry in folder.store.files(folder.at("commits")) if entry.modified_s]
    now = time.time()
    recent = sorted(one for one in times if now - one < _RECENT_S)
    if len(recent) < 2:
        return None
    return (len(recent) - 1) / max(now - recent[0], 1e-9)


def _length(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"


def _clips(totals: Mapping[str, int]) -> str:
    """Tell how clips of different lengths became documents, where a stage counts that."""
    found = [f"{fit.replace('_', '-')} {totals[f'clips.{fit}']:,}" for fit in FITS if totals.get(f"clips.{fit}")]
    return f"  clips {', '.join(found)}" if found else ""


def render_status(found: Mapping[str, Any]) -> str:
    """Return the status as a table for people."""
    lines = [f"{found['root']}"]
    for row in found["stages"]:
        counts = row["counts"]
        lost = {**counts["dropped"], **counts["failed"]}
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in sorted(lost.items()))
        name = f"{row['stage']} {row['source']} {row['what']}".rstrip()
        line = f"  {name:<34} {row['done']:>6,}/{row['total']:,} units  in {counts['in']:,}  kept {counts['kept']:,}"
        line += f"  {row['bytes'] / 2**20:,.1f} MiB"
        line += f"  {_length(row['film_s'])} of film" if row["film_s"] else ""
        line += f"  ({reasons})" if reasons else ""
        line += _clips(row["totals"])
        if row["done"] < row["total"]:
            eta = row["eta_s"]
            line += f"  ETA {eta:,.0f} s" if eta is not None else "  (not running)"
        lines.append(line)
        if "asked" in row:
            lines.append(f"    {told_totals(row['asked'])}")
        if "plan" in row:
            lines += [f"    {line}" for line in told_plan(row["plan"])]
    unanswered = sum(row["asked"]["unanswered"] for row in found["stages"] if "asked" in row)
    if unanswered:
        told = "have no good answer; tokenmill caption RECIPE --retry-failed asks them again"
        lines.append(f"  {unanswered:,} questions {told}")
    lines += [f"  {stage} cannot be done: {why}" for stage, why in found["refused"].items()]
    if found["waiting"]:
        lines.append(f"  still unknown: {', '.join(found['waiting'])}")
    return "\n".join(lines)
