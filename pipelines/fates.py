"""What became of every sample of a recipe, from the tables alone: the stage and the reason, or `kept`.

Reads every table of every unit, so it is meant for people with a question (`inspect`, the demo, the report), not for a
billion samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from tokenmill.manifests.snapshots import Snapshot

Fates = dict[tuple[str, str], str]


def fates_of(chain: Any) -> Fates:
    """Return (source, key) → `kept`, `dropped: <reason>` or `failed at <stage>: <reason> (<message>)`."""
    fates: Fates = {}
    stages: list[Mapping[str, Any]] = [chain.ingest, chain.split, chain.score, chain.choose, chain.tokenize]
    for stage in stages:
        for source, snapshots in stage.items():
            for snapshot in snapshots if isinstance(snapshots, tuple) else (snapshots,):
                for key, fate in _failures(snapshot):
                    fates.setdefault((source, key), fate)
    for source, snapshot in chain.split.items():
        fates.update({(source, key): f"dropped: {reason}" for key, reason in _dropped(snapshot)})
    for source, snapshot in chain.select.items():
        fates.update({(source, key): f"dropped: {reason}" for key, reason in _dropped(snapshot)})
    for source, snapshot in chain.tokenize.items():
        for commit in snapshot.commits:
            good = snapshot.folder.read_rows(commit).filter(pl.col("fail_reason").is_null())
            fates.update({(source, key): "kept" for key in good["key"]})
    return fates


def _failures(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    columns = ["key", "fail_stage", "fail_reason", "fail_message"]
    for commit in snapshot.commits:
        if not commit.counts.failed:
            continue
        rows = snapshot.folder.read_rows(commit, columns).filter(pl.col("fail_reason").is_not_null())
        for key, stage, reason, message in rows.iter_rows():
            yield key, f"failed at {stage}: {reason} ({message})"


def _dropped(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    for commit in snapshot.commits:
        rows = snapshot.folder.read_rows(commit, ["key", "drop_reason"]).filter(pl.col("drop_reason").is_not_null())
        yield from rows.iter_rows()
