"""What was learned: the loss while training, held-out loss beside what counting predicts, and pictures drawn.

A curve that falls proves little, so the n-gram losses of the same kind of ids are drawn across it. Training logs the
loss over all ids of a picture; ends of rows and frames are nearly free, so the baselines are scaled as if they were free
to counting too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from tokenmill.errors import ManifestError, RunError, StorageError
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.evaluation import evaluation_name
from tokenmill.pipelines.exported import Exported, find_export
from tokenmill.pipelines.generation import generated_name
from tokenmill.pipelines.report_charts import Curve, Level, Part, line_chart, stacked_bar
from tokenmill.pipelines.report_html import Child, Markup, count, element, join, note, seconds, section, table
from tokenmill.pipelines.report_pictures import Album, tile
from tokenmill.pipelines.report_tokens import facts_list
from tokenmill.recipe import Recipe

_POINTS = 300
_SMALL_PX = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What a training run left behind: metrics by step, and what was measured and drawn with the exported model."""

    metrics: Sequence[Mapping[str, Any]]
    exported: Exported | None = None
    evaluation: Mapping[str, Any] | None = None
    drawn: Mapping[str, Any] | None = None
    drawn_folder: str = ""


def read_learned(store: Store, recipe: Recipe) -> Learned:
    """Read what there is of the recipe's run; nothing is an answer too."""
    metrics = _metrics(store, f"checkpoints/{recipe.train.run}/metrics.jsonl")
    try:
        exported = find_export(store, recipe.train.run)
    except (RunError, ManifestError):
        return Learned(metrics=metrics)
    drawn = generated_name(exported, recipe.generate)
    return Learned(
        metrics=metrics,
        exported=exported,
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


def training_section(learned: Learned) -> Markup:
    """Draw the loss curves and the facts of the run."""
    if not learned.metrics:
        return section("training", "Training", note("No training has been logged yet."))
    rows = learned.metrics
    spent = sum(row.get("step_s", 0.0) for row in rows)
    tokens = sum(row.get("tokens", 0) for row in rows)
    facts = (
        ("steps", count(rows[-1]["step"])),
        ("ids read", count(tokens)),
        ("time in steps", seconds(spent)),
        ("ids a second", count(tokens / spent) if spent else "–"),
        (
            "waiting for data",
            f"{100 * sum(row.get('data_wait_s', 0.0) for row in rows) / spent:.1f} %" if spent else "–",
        ),
        ("last loss", f"{rows[-1]['loss']:.3f}"),
        ("peak memory of a rank", f"{max(row.get('memory_gib', 0.0) for row in rows):.1f} GiB"),
    )
    charts = [
        _chart(learned, "loss_vision", "pictures and clips", "codes"),
        _chart(learned, "loss_text", "text and captions", "text"),
    ]
    return section(
        "training",
        "Training",
        facts_list(facts),
        element("div", charts, class_="cards"),
        note("Nats an id, weighted as in training; faint: every step, strong: smoothed."),
    )


def _chart(learned: Learned, column: str, title: str, kind: str) -> Markup | None:
    points = [(float(row["step"]), float(row[column])) for row in learned.metrics if row.get(column) is not None]
    if len(points) < 2:
        return None
    levels, dots = [], []
    for name, label, style in (
        ("unigram_loss", "unigrams", "level"), ("bigram_loss", "bigrams", "level second"), ("loss", "held out", "dot")
    ):  # fmt: skip
        value = _across_modalities(learned.evaluation, kind, name)
        if value is not None:
            (dots if name == "loss" else levels).append(Level(value=value, label=label, kind=style))
    curves = [Curve(points=thinned(points), kind="raw"), Curve(points=thinned(smoothed(points)), kind="curve")]
    label = f"training loss of {title} over {len(points)} steps, last {points[-1][1]:.2f}"
    caption = element("h3", title, " ", element("small", "training loss"))
    return element("article", caption, line_chart(curves, levels, dots, label), class_="card")


def _across_modalities(evaluation: Mapping[str, Any] | None, kind: str, name: str) -> float | None:
    """Average a figure over modalities as training weighs them, codes diluted by the markers around them."""
    rows = [row for row in (evaluation or {}).get("losses", ()) if row["kind"] == kind and name in row]
    weights = [row["training_ids"] / row.get("share_of_vision", 1.0) for row in rows]
    if not sum(weights):
        return None
    values = [row[name] * row.get("share_of_vision", 1.0) for row in rows]
    return float(np.average(values, weights=weights))


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average each point with those before it, exponentially, over a fortieth of the run, without a slow start."""
    keep = 1.0 - 1.0 / max(2.0, len(points) / 40)
    found, total, weight = [], 0.0, 0.0
    for x, y in points:
        total, weight = keep * total + (1 - keep) * y, keep * weight + (1 - keep)
        found.append((x, total / weight))
    return found


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Take at most 300 points, the last one always."""
    step = -(-len(points) // _POINTS)
    return [*points[:-1:step], points[-1]]


def evaluation_section(learned: Learned) -> Markup:
    """Show held-out losses beside their baselines, and true captions beside shuffled ones."""
    found = learned.evaluation
    if found is None:
        return section(
            "evaluation", "Evaluation", note("The model has not been evaluated yet, or nothing is held out.")
        )
    documents = ", ".join(f"{count(number)} of {name}" for name, number in found["documents"].items())
    return section(
        "evaluation",
        "Evaluation",
        element("p", f"Documents kept out of training: {documents}. Nats an id; lower is better."),
        element("div", list(_losses(found["losses"])), class_="cards"),
        element("h3", "Does it listen to the caption?"),
        _captions(found["captions"]),
        note(
            "Unigrams and bigrams are counted on the training documents, smoothed as suits the held-out ids best. The "
            "unigram entropy is that of the held-out ids under their own frequencies: no fixed distribution does better."
        ),
    )


def _losses(rows: Sequence[Mapping[str, Any]]) -> Iterator[Markup]:
    for row in rows:
        if row["kind"] == "markers":
            continue
        figures = (("model", "loss", "curve"), ("bigrams", "bigram_loss", "plain"), ("unigrams", "unigram_loss", "plain"),
                   ("unigram entropy", "unigram_entropy", "plain"))  # fmt: skip
        known = [(label, float(row[name]), kind) for label, name, kind in figures if name in row]
        whole = max(value for _, value, _ in known) or 1.0
        lines = [
            element(
                "div",
                element("div", element("span", label), element("span", f"{value:.3f}"), class_="row"),
                stacked_bar([Part(value=value, kind=kind, title=f"{value:.4f}")], whole, f"{label} {value:.3f}"),
                class_="stage",
            )
            for label, value, kind in known
        ]
        title = element("h3", f"{row['modality']}: {row['kind']} ", element("small", f"{count(row['ids'])} ids"))
        yield element("article", title, lines, _verdict(row), class_="card")


def _verdict(row: Mapping[str, Any]) -> Markup | None:
    if "bigram_loss" not in row:
        return None
    bars = {
        "bigrams": row["bigram_loss"],
        "unigrams": row["unigram_loss"],
        "the unigram entropy": row["unigram_entropy"],
    }
    above = [name for name, value in bars.items() if row["loss"] >= value]
    if above:
        return element("p", f"✗ not below {' and '.join(above)}", class_="check bad")
    return element("p", "✓ below all three", class_="check good")


def _captions(captions: Mapping[str, Mapping[str, Any]]) -> Markup:
    if not captions:
        return note("There are not two held-out samples with captions.")
    rows = []
    for modality, gain in captions.items():
        error = gain["gain_error"]
        told = f"{gain['gain']:+.4f}" + (f" ± {error:.4f}" if error is not None else "")
        rows.append([modality, count(gain["documents"]), f"{gain['true']:.4f}", f"{gain['shuffled']:.4f}",
                     f"{gain['none']:.4f}", told, _heard(gain["gain"], error)])  # fmt: skip
    head = ("modality", "documents", "true captions", "others' captions", "no caption", "gain", "")
    return join(
        table(head, rows, numbers=(1, 2, 3, 4, 5)),
        note("Loss on the codes. The gain is others' minus true, ± its standard error over documents."),
    )


def _heard(gain: float, error: float | None) -> Markup:
    if error is None or gain <= 2 * error:
        return element("span", "not beyond chance", class_="check bad")
    return element("span", f"yes, {gain / error:.0f} standard errors" if error else "yes", class_="check good")


def generated_section(store: Store, learned: Learned, album: Album) -> Markup:
    """Show what the model drew, prompt by prompt."""
    found = learned.drawn
    if not found or not found["pictures"]:
        return section("generated", "Generated", note("Nothing has been drawn with these settings yet."))
    settings = found["settings"]
    groups = []
    for prompt in dict.fromkeys(picture["prompt"] for picture in found["pictures"]):
        mine = [picture for picture in found["pictures"] if picture["prompt"] == prompt]
        tiles = [_drawn(store, learned, picture, album) for picture in mine]
        groups.append(
            element("article", element("h4", f"“{prompt}”"), element("div", tiles, class_="sheet"), class_="card")
        )
    how = (
        f"{settings['height']} × {settings['width']} pixels, top-k {settings['top_k']}, "
        f"temperature {settings['temperature']:g}, guidance {settings['guidance']:g}, step {found['step']}."
    )
    return section("generated", "Generated", element("p", how), element("div", groups, class_="cards"))


def _drawn(store: Store, learned: Learned, picture: Mapping[str, Any], album: Album) -> Markup:
    alt = f"drawn from the prompt: {picture['prompt']}"
    try:
        data = store.read_bytes(f"{learned.drawn_folder}/{picture['file']}")
    except StorageError:
        return element("div", f"{picture['file']} is gone", class_="blank")
    pixels = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
    return tile(album.picture(pixels, alt, side=256), f"seed {picture['seed']}")


def headline(learned: Learned) -> list[tuple[str, Child]]:
    """Return the figures that belong at the top of the page."""
    facts: list[tuple[str, Child]] = []
    if learned.metrics:
        facts.append(("training steps", count(learned.metrics[-1]["step"])))
    for row in (learned.evaluation or {}).get("losses", ()):
        if (row["modality"], row["kind"]) == ("image", "codes") and "bigram_loss" in row:
            facts.append(
                (
                    "held-out nats a code",
                    element("span", f"{row['loss']:.2f} ", element("small", f"bigrams {row['bigram_loss']:.2f}")),
                )
            )
    return facts
