"""Contact sheets: what was kept, what each rule dropped, and copies beside the sample that stands for them.

A number says that 41 pictures were dropped as monochrome; only looking says whether they should have been.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from tokenmill.filters.rules import columns_of
from tokenmill.pipelines.report_data import Run, SourceTable
from tokenmill.pipelines.report_html import Child, Markup, count, element, join, note, section, short_number
from tokenmill.pipelines.report_pictures import Album, Originals, Pixels, tile

_KEPT = {"image": 24, "video": 12, "text": 6, "document": 6}
_A_REASON = 8
_COPIES = ("exact_duplicate", "near_duplicate")
_EXCERPT = 260


def sheets_section(run: Run, album: Album, originals: Originals) -> Markup:
    """Show samples of every source that was selected from."""
    if not run.tables:
        return section("samples", "Samples", note("Nothing is selected yet, so there are no samples to show."))
    parts = [_source(run, table, album, originals) for table in run.tables.values()]
    return section("samples", "Samples", parts)


def _source(run: Run, table: SourceTable, album: Album, originals: Originals) -> Markup:
    show = _texts if table.modality in ("text", "document") else _pictures
    title = element("h3", table.source, " ", element("small", table.modality))
    body = join(*show(run, table, album, originals))
    trouble = originals.unreachable.get(table.source)
    return join(title, note(f"Some originals can't be read: {trouble}") if trouble else None, body)


def _pictures(run: Run, table: SourceTable, album: Album, originals: Originals) -> Iterator[Child]:
    """Show the kept ones, then what was dropped, reason by reason."""
    kept = table.some(pl.col("keep"), _KEPT[table.modality])
    found = originals.pictures(table, kept)
    tiles = [_tile(row, found[row["key"]], album, _told(row, ())) for row in _rows(kept) if row["key"] in found]
    what = "clips, three frames of each" if table.modality == "video" else "pictures"
    yield _sheet(f"Kept {what}", table.num_kept, tiles)
    groups = [
        _dropped(run, table, reason, number, album, originals) for reason, number in sorted(table.drop_counts.items())
    ]
    yield element("div", groups, class_="groups")


def _dropped(run: Run, table: SourceTable, reason: str, number: int, album: Album, originals: Originals) -> Markup:
    title = f"Dropped: {_words(reason)}"
    if reason in _COPIES:
        return _sheet(title, number, _pairs(run, table, reason, album, originals))
    rows = table.some(pl.col("drop_reason") == reason, _A_REASON)
    found = originals.pictures(table, rows)
    columns = _judged_by(run, table, reason)
    tiles = [_tile(row, found[row["key"]], album, _told(row, columns)) for row in _rows(rows) if row["key"] in found]
    return _sheet(title, number, tiles)


def _sheet(title: str, number: int, tiles: list[Markup]) -> Markup:
    told = f"{count(number)}, {len(tiles)} shown" if len(tiles) < number else count(number)
    heading = element("h4", title, " ", element("small", told))
    return element("div", heading, element("div", tiles, class_="sheet"), class_="group")


def _tile(row: Mapping[str, Any], pixels: Pixels, album: Album, told: Child) -> Markup:
    text = row["caption"] or row["key"]
    badge = None
    if "start_frame" in row:
        badge = f"▶ {(row['end_frame'] - row['start_frame']) / row['fps']:.1f} s"
    is_clip = pixels.ndim == 4
    shown = (
        join(*(album.picture(frame, text, side=128) for frame in pixels)) if is_clip else album.picture(pixels, text)
    )
    return tile(shown, element("code", row["key"]), row["caption"], told, badge=badge, strip=is_clip)


def _told(row: Mapping[str, Any], columns: tuple[str, ...]) -> Child:
    """Say the values a rule looked at; the size of a picture where it looked at none."""
    names = columns or (("width_px", "height_px") if row.get("width_px") else ())
    if names == ("width_px", "height_px"):
        return f"{row['width_px']} × {row['height_px']}"
    values = [f"{name} {_value(row.get(name))}" for name in names]
    return ", ".join(values) or None


def _value(value: Any) -> str:
    if value is None:
        return "missing"
    return short_number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _judged_by(run: Run, table: SourceTable, reason: str) -> tuple[str, ...]:
    rule = run.chain.rules_of[table.source].texts.get(reason.removesuffix(":null"))
    return columns_of(rule) if rule else ()


def _pairs(run: Run, table: SourceTable, reason: str, album: Album, originals: Originals) -> list[Markup]:
    """Show copies beside the sample that was kept for them."""
    pairs = []
    for row in _rows(table.some(pl.col("drop_reason") == reason, 6)):
        kept = _kept_for(run, row)
        copy = originals.pictures(table, table.find(row["key"])).get(row["key"])
        if kept is None or copy is None:
            continue
        other, rows = kept
        original = originals.pictures(other, rows).get(rows["key"][0])
        if original is None:
            continue
        first = _tile(rows.row(0, named=True), original, album, "kept")
        second = _tile(row, copy, album, _bits(rows.row(0, named=True), row))
        pairs.append(
            element("div", first, element("span", "≈" if reason == "near_duplicate" else "="), second, class_="pair")
        )
    return pairs


def _kept_for(run: Run, row: Mapping[str, Any]) -> tuple[SourceTable, pl.DataFrame] | None:
    source, _, key = str(row["duplicate_of"]).partition("/")
    table = run.tables.get(source)
    rows = table.find(key) if table is not None else None  # no row where the name tells the shard of a repeated key
    return (table, rows) if table is not None and rows is not None and rows.height else None


def _bits(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    if one["sha256"] == two["sha256"]:
        return "dropped, the same bytes"
    if one.get("phash") is None or two.get("phash") is None:
        return "dropped"
    return f"dropped, {(int(one['phash']) ^ int(two['phash'])).bit_count()} bits away"


def _texts(run: Run, table: SourceTable, album: Album, originals: Originals) -> Iterator[Child]:
    kept = table.some(pl.col("keep"), _KEPT[table.modality])
    yield _excerpts(f"Kept {table.modality}s", table.num_kept, kept, originals.texts(table, kept), ())
    for reason, number in sorted(table.drop_counts.items()):
        rows = table.some(pl.col("drop_reason") == reason, 3)
        columns = _judged_by(run, table, reason)
        yield _excerpts(f"Dropped: {_words(reason)}", number, rows, originals.texts(table, rows), columns)


def _excerpts(title: str, number: int, rows: pl.DataFrame, texts: dict[str, str], columns: tuple[str, ...]) -> Markup:
    quotes = []
    for row in _rows(rows):
        text = texts.get(row["key"])
        if text is not None:
            cut = " ".join(text[: 4 * _EXCERPT].split())[:_EXCERPT]
            told = _told(row, columns) if columns else f"{count(len(text))} characters"
            told = f"copy of {row['duplicate_of']}" if row["duplicate_of"] else told
            quotes.append(element("blockquote", cut, element("footer", element("code", row["key"]), " ", told)))
    return join(
        element("h4", title, " ", element("small", f"{count(number)} in all")), element("div", quotes, class_="quotes")
    )


def _rows(frame: pl.DataFrame) -> Iterator[dict[str, Any]]:
    return frame.iter_rows(named=True)


def _words(reason: str) -> str:
    return re.sub(r"[_:]+", " ", reason)
