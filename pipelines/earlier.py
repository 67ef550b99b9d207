"""The rows of a unit as its last attempt has them, bytes and all: what a retry need not fetch again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat

from tokenmill.errors import SampleError
from tokenmill.manifests.records import Commit
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.reading import Place, read_places
from tokenmill.pipelines.sources.journal import trusted
from tokenmill.pipelines.sources.source import IndexRow


def earlier_rows(folder: StageDir, commit: Commit, start: int) -> Iterator[IndexRow | None]:
    """Yield the rows from number `start` on; None for one that failed in passing, or whose bytes are gone."""
    rows = folder.read_rows(commit).slice(start)
    packed = rows.filter(rows["packed"])
    archive = folder.at(commit.data.name) if commit.file("data") else ""
    data: Iterator[bytes | None] = repeat(None)
    if archive and folder.store.exists(archive):
        places = [Place(archive, *place) for place in packed.select("offset", "length").iter_rows()]
        data = read_places(folder.store, places)
    for record in rows.iter_rows(named=True):
        error = None
        if record["fail_reason"] is not None:
            error = SampleError(record["fail_reason"], record["fail_message"], transient=record["fail_transient"])
        yield trusted(
            IndexRow(
                key=record["key"],
                path=record["path"],
                length=record["length"],
                extension=record["extension"],
                sha256=record["sha256"],
                caption=record["caption"],
                metadata=record["metadata"],
                payload=next(data) if record["packed"] else None,
                error=error,
            )
        )
