"""Held-out loss beside what counting predicts of the same ids, and whether captions are listened to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tokenmill.pipelines.report_charts import Part, stacked_bar
from tokenmill.pipelines.report_html import Markup, count, element, join, note, section, table
from tokenmill.pipelines.report_learned import Learned

_FIGURES = (
    ("model", "loss", "curve"),
    ("bigrams", "bigram_loss", "plain"),
    ("unigrams", "unigram_loss", "plain"),
    ("unigram entropy", "unigram_entropy", "plain"),
)
_NAMES = {
    ("image", "codes"): "codes of pictures",
    ("image", "text"): "captions of pictures",
    ("video", "codes"): "codes of clips",
    ("video", "text"): "captions of clips",
    ("text", "text"): "texts",
}
_ENOUGH = 10  # documents, for a verdict


def evaluation_section(learned: Learned) -> Markup:
    """Show held-out losses beside their baselines, and true captions beside shuffled ones."""
    found = learned.evaluation
    if found is None:
        return section(
            "evaluation", "Evaluation", note("The model has not been evaluated yet, or nothing is held out.")
        )
    documents = ", ".join(f"{count(number)} {name}" for name, number in found["documents"].items())
    return section(
        "evaluation",
        "Evaluation",
        element("p", f"Documents kept out of training: {documents}. Nats an id; lower is better."),
        element("div", list(_losses(found)), class_="cards"),
        element("h3", "Does it listen to the caption?"),
        _captions(found["captions"]),
        note(
            "Unigrams and bigrams are counted on the training documents, smoothed as suits the held-out ids best. The "
            "unigram entropy is that of the held-out ids under their own frequencies: nothing fixed does better."
        ),
    )


def _losses(found: Mapping[str, Any]) -> Iterator[Markup]:
    for row in found["losses"]:
        if row["kind"] == "markers":
            continue
        known = [(label, float(row[name]), kind) for label, name, kind in _FIGURES if name in row]
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
        title = element("h3", _NAMES[row["modality"], row["kind"]], " ", element("small", f"{count(row['ids'])} ids"))
        yield element("article", title, lines, _verdict(row, found["documents"][row["modality"]]), class_="card")


def _verdict(row: Mapping[str, Any], documents: int) -> Markup | None:
    if "bigram_loss" not in row:
        return None
    if documents < _ENOUGH:
        return note(f"Too few documents ({documents}) to tell.")
    bars = {"bigrams": row["bigram_loss"], "unigrams": row["unigram_loss"], "unigram entropy": row["unigram_entropy"]}
    above = [name for name, value in bars.items() if row["loss"] >= value]
    if above:
        return element("p", f"✗ not below {', '.join(above)}", class_="check bad")
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
