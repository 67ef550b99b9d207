"""Stage evaluate: how well the exported model predicts what was kept out of training, beside what counting predicts.

The baselines are n-gram models counted on the very training documents of the plan and asked for the same held-out ids,
modality by modality (generate/ngrams.py says why a plug-in bigram entropy would be no fair bar). Written once a model
and plan; asking again reads the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokenmill.errors import ManifestError
from tokenmill.generate.threads import steady_threads
from tokenmill.manifests.identity import digest_of, short
from tokenmill.manifests.plans import Plan, open_plan
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.exported import Exported, find_export
from tokenmill.recipe import Recipe

VERSION = 1
SCHEMA = 1
_COUNTED_DOCUMENTS = 20_000  # of the training part, for the n-grams
_SHOWN_KINDS = ("text", "codes", "markers")


def evaluate_model(recipe: Recipe) -> dict[str, Any]:
    """Measure the recipe's exported model on held-out documents and return the figures that matter most.

    Raises:
        RunError: nothing was exported yet. ManifestError: the plan it was trained on is gone or damaged.
    """
    store = open_store(recipe.root, recipe.storage)
    exported = find_export(store, recipe.train.last.run)
    name = evaluation_name(exported, recipe.generate.evaluate_documents)
    if not store.exists(name):
        plan = plan_of(exported, recipe.train.last.phase)
        if not plan.folder.config.settings["plan"]["held_out"] or not recipe.generate.evaluate_documents:
            return {"documents": 0, "note": "nothing is held out (plan.held_out, generate.evaluate_documents)"}
        found = measure(exported, plan, recipe.generate.evaluate_documents)
        store.put_exclusive(name, (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())
    return _row(json.loads(store.read_bytes(name)), name)


def evaluation_name(exported: Exported, documents: int) -> str:
    """Name the file that holds the evaluation of this model with so many documents."""
    identity = digest_of({"version": VERSION, "model": exported.fingerprint, "documents": documents})
    return f"evaluation/{exported.run}/{short(identity)}.json"


def plan_of(exported: Exported, phase: str) -> Plan:
    """Open the plan a model was trained on."""
    return open_plan(exported.store, f"plans/{phase}/{short(exported.plan)}")


def measure(exported: Exported, plan: Plan, limit: int) -> dict[str, Any]:
    """Load the model and measure it; a NaN or a measure without documents is left out or None."""
    from tokenmill.generate.evaluate import heldout_loss
    from tokenmill.generate.model import load_model
    from tokenmill.pipelines.held_out import draw_documents

    with exported.local() as path:
        loaded = load_model(path)
    held_out = draw_documents(plan, loaded.vocabulary, "held_out", limit)
    if not held_out:
        raise ManifestError(f"{plan.folder.path}: its held-out part has no document")
    training = draw_documents(plan, loaded.vocabulary, "training", _COUNTED_DOCUMENTS)
    with steady_threads(loaded.model):
        loss = heldout_loss(loaded.model, [document.ids for document in held_out], loaded.vocabulary)
        captions = _captions(loaded, held_out)
    losses = []
    for modality in sorted({document.modality for document in held_out}):
        mine = np.array([document.modality == modality for document in held_out])
        known = [document for document in training if document.modality == modality]
        losses += _rows(modality, loss, mine, known, [d for d in held_out if d.modality == modality], loaded.vocabulary)
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "run": exported.run,
        "model": exported.fingerprint,
        "step": exported.description.get("step"),
        "plan": plan.plan_id,
        "documents": _counted(held_out),
        "training_documents": _counted(training),
        "losses": losses,
        "captions": captions,
    }


def _rows(
    modality: str, loss: Any, mine: Any, known: Sequence[Any], asked: Sequence[Any], vocabulary: Any
) -> list[dict[str, Any]]:
    """Give one row a kind of id: the model's loss, and the baselines of the same ids (nats an id).

    `training_ids` counts them as often as the plan goes through their source; `share_of_vision` is the share of codes
    among the ids of a picture, whose rest are the ends of rows and frames.
    """
    from tokenmill.generate.evaluate import kinds_of, ngram_table

    baselines = ngram_table([d.ids for d in known], [d.ids for d in asked], vocabulary) if known else {}
    rows = []
    for kind in _SHOWN_KINDS:
        ids = int(loss.counts[kind][mine].sum())
        if ids:
            row = {"modality": modality, "kind": kind, "ids": ids, "loss": float(loss.sums[kind][mine].sum() / ids)}
            row["training_ids"] = sum(d.weight * int(kinds_of(d.ids, vocabulary)[kind][1:].sum()) for d in known)
            if kind == "codes":
                row["share_of_vision"] = ids / sum(int(vocabulary.vision_mask(d.ids).sum()) for d in asked)
            rows.append(row | baselines.get(kind, {}))
    return rows


def _captions(loaded: Any, held_out: Sequence[Any]) -> dict[str, dict[str, float | None]]:
    """Compare true captions with shuffled ones, for every modality with captions."""
    from tokenmill.generate.evaluate import caption_gain
    from tokenmill.tokenize.documents import TextSegment, VisionSegment, assembled_length

    found = {}
    context = loaded.model.config.max_position_embeddings
    for modality in ("image", "video"):
        samples = [document.sample for document in held_out if document.modality == modality]
        samples = [
            sample
            for sample in samples
            if any(isinstance(s, TextSegment) and s.role == "caption" and s.variant == 0 for s in sample.segments)
            and any(isinstance(s, VisionSegment) for s in sample.segments)
            and assembled_length(sample.segments, "generation", loaded.vocabulary) <= context
        ]
        if len(samples) > 1:
            gains = caption_gain(loaded.model, samples, loaded.vocabulary)
            found[modality] = {"documents": len(samples), **{name: _finite(value) for name, value in gains.items()}}
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _counted(documents: Sequence[Any]) -> dict[str, int]:
    modalities = [document.modality for document in documents]
    return {modality: modalities.count(modality) for modality in sorted(set(modalities))}


def _row(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    row: dict[str, Any] = {"documents": sum(found["documents"].values())}
    for item in found["losses"]:
        if (item["modality"], item["kind"]) in (("image", "codes"), ("video", "codes"), ("text", "text")):
            what = f"{item['modality']}_{item['kind']}"
            row[what] = {key: round(item[key], 4) for key in ("loss", "unigram_loss", "bigram_loss") if key in item}
    for modality, gains in found["captions"].items():
        row[f"{modality}_caption_gain"] = [round(gains[key], 4) for key in ("gain", "gain_error") if gains[key]]
    return {**row, "evaluation": name}
