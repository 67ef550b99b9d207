"""What became of the samples as tokens: reconstructions, how many ids of what, and how they lie in packs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from tokenmill.generate.write_video import side_by_side
from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.pipelines.reconstruction import Decoded, fitted, reconstruct
from tokenmill.pipelines.report_data import Run, SourceTable, token_rows
from tokenmill.pipelines.report_html import Child, Markup, count, element, join, note, section, size, table
from tokenmill.pipelines.report_pictures import Album, Originals, Pixels, tile
from tokenmill.pipelines.report_plan import plans_part
from tokenmill.pipelines.tokens_clip import FITS
from tokenmill.pipelines.tokens_settings import open_vision
from tokenmill.tokenize.picture_quality import psnr_db

_SHOWN = {"image": 8, "video": 4}


def tokens_section(run: Run, album: Album, originals: Originals) -> Markup:
    """Show the token archives, the reconstructions and the plan."""
    snapshots = {source: found[0] for source, found in run.snapshots("tokenize").items()}
    if not snapshots:
        return section("tokens", "Tokens", note("Nothing is tokenized yet."))
    return section(
        "tokens",
        "Tokens",
        _archives(snapshots),
        _clip_lengths({source: one for source, one in snapshots.items() if run.modality(source) == "video"}),
        element("h3", "Reconstructions"),
        _reconstructions(run, snapshots, album, originals),
        plans_part(run.plans),
    )


def _archives(snapshots: Mapping[str, Snapshot]) -> Markup:
    rows = []
    for source, snapshot in snapshots.items():
        totals = snapshot.totals
        rows.append([
            source, count(snapshot.counts.out), count(totals.get("codes", 0)), count(totals.get("text_ids", 0)),
            size(totals.get("bytes", 0)), count(len(snapshot.commits)), _grids(snapshot),
        ])  # fmt: skip
    head = ("source", "samples", "codes", "text ids", "archives", "shards", "commonest grids of codes")
    return table(head, rows, numbers=(1, 2, 3, 4, 5))


def _clip_lengths(snapshots: Mapping[str, Snapshot]) -> Markup | None:
    """Tell how many clips became documents whole, in pieces, at a lower rate, …, and how many were refused."""
    if not snapshots:
        return None
    rows = []
    for source, snapshot in snapshots.items():
        policy, totals = snapshot.folder.config.settings["clip"], snapshot.totals
        asked = f"{policy['long'].replace('_', ' ')}, {policy['fps']:g} fps, {count(policy['max_ids'])} ids"
        fits = [count(totals.get(f"clips.{fit}", 0)) for fit in FITS]
        rows.append([source, asked, *fits, count(snapshot.counts.failed.get("too_long", 0))])
    head = ("clips of", "policy", *FITS.values(), "refused: too long")
    return table(head, rows, numbers=range(2, len(head)))


def _grids(snapshot: Snapshot) -> str:
    """Name the commonest sizes, of the samples of up to 50 shards."""
    grids: Counter[str] = Counter()
    for _, _, rows in token_rows(snapshot):
        for text in rows["segments"]:
            grids.update(_grid(item["vision"]) for item in json.loads(text) if "vision" in item)
    return ", ".join(f"{grid} ({count(number)})" for grid, number in grids.most_common(3))


def _grid(sides: Sequence[int]) -> str:
    t, h, w = sides
    return f"{h}×{w}" if t == 1 else f"{t}×{h}×{w}"


def _reconstructions(run: Run, snapshots: Mapping[str, Snapshot], album: Album, originals: Originals) -> Child:
    parts: list[Child] = []
    opened: dict[str, Any] = {}
    for source, snapshot in snapshots.items():
        spec = snapshot.folder.config.settings.get("vision")
        if not spec or source not in run.tables or run.modality(source) not in _SHOWN:
            continue
        name = digest_of(spec)
        opened[name] = opened.get(name) or open_vision(spec)
        pairs = list(_pairs(run.tables[source], snapshot, opened[name], originals))
        if pairs:
            values = [pair.psnr for pair in pairs if math.isfinite(pair.psnr)]
            mean = f"mean PSNR {sum(values) / len(values):.1f} dB over these {len(pairs)}" if values else "exact"
            tiles = [_pair(pair, album) for pair in pairs]
            parts.append(element("h4", source, " ", element("small", mean)))
            parts.append(element("div", tiles, class_="sheet"))
    told = note("On the left the original as it was tokenized, on the right its codes decoded; of clips the start.")
    return [told, parts] if parts else note("There is no tokenized picture or clip to decode.")


def _pair(pair: _Pair, album: Album) -> Markup:
    key, fps = pair.key, pair.fps
    if fps is None:
        shown = join(
            album.picture(pair.original[0], f"original of {key}", side=160),
            album.picture(pair.decoded[0], f"{key}, decoded", side=160),
        )
    else:
        both = side_by_side(pair.original, pair.decoded)
        shown = album.video(both, fps, f"{key}: the original, and beside it what its codes decode to")
    told = "exact" if math.isinf(pair.psnr) else f"{pair.psnr:.1f} dB"
    return tile(shown, element("code", key), told, double=True)


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Original and decoded frames (THWC) of a sample, of one size; `fps` of a clip alone."""

    key: str
    original: Pixels
    decoded: Pixels
    fps: float | None

    @property
    def psnr(self) -> float:
        return psnr_db(self.original, self.decoded)


def _pairs(samples: SourceTable, snapshot: Snapshot, vision: Any, originals: Originals) -> Iterator[_Pair]:
    """Yield some samples beside what they decode to; a sample that cannot be read again is left out."""
    for decoded in _decoded(samples, snapshot, vision):
        row = samples.find(decoded.key)
        if not row.height:
            continue
        original = _original(samples, row, decoded, originals)
        if original is not None:
            yield _Pair(key=decoded.key, original=original, decoded=decoded.frames, fps=decoded.segment.fps)


def _original(samples: SourceTable, row: pl.DataFrame, decoded: Decoded, originals: Originals) -> Pixels | None:
    """Return what was encoded, as frames of the decoded size."""
    if decoded.segment.fps is not None:
        return originals.clip(samples, row.row(0, named=True), decoded.segment.fps, decoded.frames)
    picture = originals.pictures(samples, row).get(decoded.key)
    return None if picture is None else fitted(picture, decoded.frames[0])[None]


def _decoded(samples: SourceTable, snapshot: Snapshot, vision: Any) -> Iterator[Decoded]:
    """Decode some samples that the report has rows of, from as few archives as it takes."""
    wanted = samples.some(pl.col("keep"), 400)["key"].to_list()
    place = {key: number for number, key in enumerate(wanted)}
    units = list(token_rows(snapshot, limit=4))
    left = _SHOWN[samples.modality]
    for units_left, (folder, commit, rows) in zip(range(len(units), 0, -1), units, strict=True):
        known = [row for row in rows.iter_rows(named=True) if row["key"] in place]
        known = sorted(known, key=lambda row: place[row["key"]])[: -(-left // units_left)]
        yield from reconstruct(folder.store, folder.at(commit.data.name), known, vision)
        left -= len(known)
