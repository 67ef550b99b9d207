"""What was asked for captions: every column's figures, and some samples with all that was said of them.

A refusal rate says that a prompt is bad; only reading the captions beside their pictures says that one is good.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from tokenmill.pipelines.asked_totals import AskedTotals
from tokenmill.pipelines.column_answers import ColumnAnswers, Said
from tokenmill.pipelines.earlier_records import EarlierRecords
from tokenmill.pipelines.questions import Asking
from tokenmill.pipelines.report_data import Run, SourceTable
from tokenmill.pipelines.report_html import Child, Markup, count, element, join, note, section, short_number, table
from tokenmill.pipelines.report_pictures import Album, Originals, Pixels

_SAMPLES = {"image": 6, "video": 3}
_EXCERPT = 420
_HEAD = ("source", "column", "engine", "questions", "good", "failed", "requests", "asked again", "tokens in",
         "tokens out", "cost", "captions used")  # fmt: skip


def captions_section(run: Run, album: Album, originals: Originals) -> Markup:
    """Show the columns of every source that has captions, and some samples of those with more than the source's own."""
    chosen = run.snapshots("choose")
    if not chosen:
        return section("captions", "Captions", note("No captions are chosen yet."))
    rows = [row for source in chosen for row in _columns(run, source)]
    samples = [_samples(run, source, album, originals) for source in chosen if _is_worth_showing(run, source)]
    return section("captions", "Captions", table(_HEAD, rows, numbers=(3, 4, 6, 8, 9, 10, 11)), samples)


def _asking(run: Run, source: str) -> dict[str, Asking]:
    modality = run.modality(source)
    columns = run.chain.captions_of(modality).columns
    return {name: Asking.of(column, modality, source) for name, column in columns.items()}


def _is_worth_showing(run: Run, source: str) -> bool:
    """Say whether there is more to read than the source's own captions, which stand under its samples already."""
    columns = _asking(run, source)
    return source in run.tables and (len(columns) > 1 or any(one.captioner.asks for one in columns.values()))


def _columns(run: Run, source: str) -> Iterator[list[Child]]:
    used = run.chain.choose[source].totals
    for name, asking in _asking(run, source).items():
        snapshot = run.chain.caption[source, name]
        failed = ", ".join(f"{why} {count(number)}" for why, number in sorted(snapshot.counts.failed.items()))
        totals = AskedTotals.of(snapshot.folder, asking.column.prices.currency)
        again = ", ".join(f"{why} {count(number)}" for why, number in sorted(totals.retried.items()))
        costs: list[Child] = [""] * 6
        if asking.captioner.asks:
            cost = f"{short_number(totals.cost_millionths / 1e6)} {totals.currency}" if totals.cost_millionths else ""
            tokens = (count(totals.input_tokens), count(totals.output_tokens))
            costs = [count(totals.questions), count(totals.requests), again, *tokens, cost]
        questions, *spent = costs
        good = count(snapshot.counts.kept)
        yield [source, name, asking.column.engine, questions, good, failed, *spent, count(used.get(f"used.{name}", 0))]


def _samples(run: Run, source: str, album: Album, originals: Originals) -> Markup:
    """Show samples with what every column says of them."""
    shown: SourceTable = run.tables[source]
    rows = shown.some(pl.col("keep"), _SAMPLES[shown.modality])
    pictures = originals.pictures(shown, rows)
    cards = [
        _card(key, pictures.get(key), said, used, album)
        for unit in sorted(set(rows["unit"]))
        for key, said, used in _said(run, source, unit, rows.filter(pl.col("unit") == unit)["key"].to_list())
    ]
    title = element("h3", source, " ", element("small", "what was said of some samples"))
    return join(title, element("div", cards, class_="cards broad"))


def _said(
    run: Run, source: str, unit: int, keys: list[str]
) -> Iterator[tuple[str, Mapping[str, Said], Mapping[str, Any]]]:
    """Yield key, what each column says, and the row of the choice, of some samples of one slice."""
    part, choose = run.chain.selected[source][unit], run.chain.choose[source]
    rows = part.read().filter(pl.col("key").is_in(keys))
    said = {}
    for name, asking in _asking(run, source).items():
        folder = run.chain.caption[source, name].folder
        records = tuple(EarlierRecords(folder).about(part.piece))
        said[name] = ColumnAnswers(asking=asking).said(rows, part.carried(), folder, records)
    used = {row["key"]: row for row in choose.folder.read_rows(choose.commits[unit]).iter_rows(named=True)}
    for key in rows["key"]:
        yield key, {name: one[key] for name, one in said.items()}, used[key]


def _card(
    key: str, pixels: Pixels | None, said: Mapping[str, Said], used: Mapping[str, Any], album: Album
) -> Markup:  # fmt: skip
    shown: Child = None
    if pixels is not None:
        frames = list(pixels) if pixels.ndim == 4 else [pixels]
        shown = [album.picture(frame, key, side=128 if len(frames) > 1 else 176) for frame in frames]
    lines = [_line(name, one, used) for name, one in said.items()]
    head = element("div", element("code", key), class_="row")
    return element("article", head, element("div", shown, class_="row"), lines, class_="card")


def _line(name: str, said: Said, used: Mapping[str, Any]) -> Markup:
    """Write what one column says, and whether it is used."""
    title = element("b", name)
    if said.error is not None:
        reason = element("span", said.error.reason, class_="chip failed")
        return element("p", title, " ", reason, " ", _excerpt(said.error.message))
    if said.pairs:
        asked = [element("span", f"{question} — {answer}") for question, answer in said.pairs[:4]]
        return element("p", title, " ", element("span", "used", class_="chip kept"), " ", _lines(asked))
    taken = set(used["captions"] or ())
    texts = [element("span", _excerpt(text), *(_mark(text in taken))) for text in said.texts[:4]]
    return element("p", title, " ", _lines(texts))


def _mark(is_used: bool) -> Iterator[Markup]:
    if is_used:
        yield Markup(" ")
        yield element("span", "used", class_="chip kept")


def _lines(parts: list[Markup]) -> Markup:
    return join(
        *(child for number, part in enumerate(parts) for child in ((element("br"), part) if number else (part,)))
    )


def _excerpt(text: str) -> str:
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}…"
