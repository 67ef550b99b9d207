"""What a training run left behind, for the report: metrics, evaluation, drawn pictures; any of it may be absent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenmill.errors import ManifestError, RunError, StorageError
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.evaluation import evaluation_name
from tokenmill.pipelines.exported import find_export
from tokenmill.pipelines.generation import generated_name
from tokenmill.pipelines.report_html import Child, count, element
from tokenmill.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What a training run left behind: metrics by step, and what was measured and drawn with the exported model."""

    metrics: Sequence[Mapping[str, Any]]
    held_out: Sequence[Mapping[str, Any]] = ()  # what evaluations while training found, by step
    plan: str | None = None  # the full id of the plan the exported model was trained on
    evaluation: Mapping[str, Any] | None = None
    drawn: Mapping[str, Any] | None = None
    drawn_folder: str = ""


def read_learned(store: Store, recipe: Recipe) -> Learned:
    """Read what there is of the recipe's run; nothing is an answer too."""
    run = f"checkpoints/{recipe.train.last.run}"
    metrics, held_out = _metrics(store, f"{run}/metrics.jsonl"), _metrics(store, f"{run}/evaluation.jsonl")
    try:
        exported = find_export(store, recipe.train.last.run)
    except (RunError, ManifestError):
        return Learned(metrics=metrics, held_out=held_out)
    drawn = generated_name(exported, recipe.generate)
    return Learned(
        metrics=metrics,
        held_out=held_out,
        plan=exported.description.get("plan"),
        evaluation=_json(store, evaluation_name(exported, recipe.generate.evaluate_documents)),
        drawn=_json(store, drawn),
        drawn_folder=drawn.rsplit("/", 1)[0],
    )


def _metrics(store: Store, name: str) -> list[dict[str, Any]]:
    """Read rows by step; a line that a kill cut off is passed over, of two rows of a step the later one counts."""
    if not store.exists(name):
        return []
    rows: dict[int, dict[str, Any]] = {}
    for line in store.read_bytes(name).splitlines(keepends=True):
        if line.endswith(b"\n"):
            row = json.loads(line)
            rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def _json(store: Store, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(store.read_bytes(name))
    except (StorageError, ValueError):
        return None
    return found


def headline(learned: Learned) -> list[tuple[str, Child]]:
    """Return the figures that belong at the top of the page."""
    facts: list[tuple[str, Child]] = []
    if learned.metrics:
        facts.append(("training steps", count(learned.metrics[-1]["step"])))
    losses = {(row["modality"], row["kind"]): row for row in (learned.evaluation or {}).get("losses", ())}
    codes = losses.get(("image", "codes"), {})
    if "bigram_loss" in codes:
        beside = element("small", f"bigrams {codes['bigram_loss']:.2f}")
        facts.append(("held-out nats a code", element("span", f"{codes['loss']:.2f} ", beside)))
    gain = (learned.evaluation or {}).get("captions", {}).get("image")
    if gain and gain["gain_error"] is not None:
        beside = element("small", f"± {gain['gain_error']:.3f}")
        facts.append(("nats a code saved by captions", element("span", f"{gain['gain']:.3f} ", beside)))
    return facts
