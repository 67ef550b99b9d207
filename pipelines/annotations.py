"""All annotations of a modality as one lazy table, and SQL over it.

One row a sample: `source`, `key`, every score, `fail_reason`, what the selection says of it (`keep`, `drop_reason`,
`duplicate_of`, `rescued_by`; null where it was not made yet), and the index (`sha256`, `caption`, …). A slice's tables
are read, with their digests compared, when the query comes to it, and only the columns that it names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from tokenmill.errors import RecipeError, RunError
from tokenmill.manifests.packed_table import open_rows
from tokenmill.manifests.records import Commit
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.chain import Chain
from tokenmill.pipelines.checked_recipe import MODALITIES
from tokenmill.pipelines.execution_threads import query_threads
from tokenmill.pipelines.reading import ordered_map
from tokenmill.pipelines.samples import FAILURE_COLUMNS
from tokenmill.pipelines.scored import Scored

VERDICTS: dict[str, Any] = {
    "keep": pl.Boolean(),
    "drop_reason": pl.String(),
    "duplicate_of": pl.String(),
    "rescued_by": pl.String(),
}
_NOT_TOLD = {"key", "drop_reason", "path", "packed", "offset", *FAILURE_COLUMNS}


@dataclass(frozen=True, kw_only=True)
class AnnotatedSlice:
    """A slice and the record of its selection, where there is one."""

    part: Scored
    verdicts: tuple[StageDir, Commit] | None

    def read(self, columns: Collection[str], schema: pl.Schema) -> pl.DataFrame:
        """Return the slice's rows with some of the columns; raises ManifestError if a table is damaged."""
        source = pl.lit(self.part.piece.source).alias("source")
        frame = self.part.verdict_table(columns).with_columns(source)
        index = [name for name in columns if name not in frame.columns and name not in VERDICTS]
        if index:
            piece = self.part.piece
            known = open_rows(piece.folder, piece.commit).columns
            wanted = ["key", *(name for name in index if name in known)]
            frame = _beside(frame, piece.read(wanted).select(wanted))
        if self.verdicts is not None and VERDICTS.keys() & columns:
            table = open_rows(*self.verdicts)
            wanted = [name for name in VERDICTS if name in columns and name in table.columns]
            frame = _beside(frame, table.read(["key", *wanted]))
        missing = [name for name in columns if name not in frame.columns]
        return frame.with_columns(pl.lit(None, dtype=schema[name]).alias(name) for name in missing).select(columns)


class _Annotations:
    """What polars asks for rows; keeps the error that ended a query, which polars would turn into text."""

    def __init__(self, slices: Sequence[AnnotatedSlice], schema: pl.Schema, threads: int) -> None:
        self._slices, self._schema, self._threads = slices, schema, threads
        self.error: Exception | None = None

    def frames(
        self, with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        wanted = list(self._schema) if with_columns is None else with_columns
        used = list(dict.fromkeys([*wanted, *(predicate.meta.root_names() if predicate is not None else ())]))
        left = n_rows  # rows before the predicate: what polars asks of a source is a LIMIT below a WHERE
        try:
            for frame in self._read(used):
                if left is not None:
                    frame = frame.head(left)
                    left -= frame.height
                yield (frame if predicate is None else frame.filter(predicate)).select(wanted)
                if left == 0:
                    return
        except Exception as error:
            self.error = error
            raise

    def _read(self, columns: list[str]) -> Iterator[pl.DataFrame]:
        """Yield the slices in order, some of them read ahead."""
        threads = self._threads
        return ordered_map(
            lambda one: one.read(columns, self._schema), self._slices, threads=threads, window=2 * threads
        )


def run_sql(chain: Chain, query: str) -> pl.DataFrame:
    """Answer an SQL query over the tables `image`, `video` and `text`, as far as the recipe has such sources.

    Raises:
        RecipeError: polars cannot understand the query, or it names what is not there.
        ManifestError: a table is damaged.
    """
    tables = {modality: slices for modality in MODALITIES if (slices := _slices(chain, modality))}
    readers = {}
    context = pl.SQLContext(eager=False)
    for modality, slices in tables.items():
        schema = _schema(chain, modality, slices)
        readers[modality] = _Annotations(slices, schema, query_threads(chain.store))
        context.register(modality, pl.io.plugins.register_io_source(readers[modality].frames, schema=schema))
    try:
        found = context.execute(query, eager=False).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        for reader in readers.values():
            if reader.error is not None:
                raise reader.error from error
        raise RecipeError(_told(error, chain, tables)) from error
    return found


def _slices(chain: Chain, modality: str) -> list[AnnotatedSlice]:
    found = []
    for name in chain.sources_of(modality):
        try:
            snapshot = chain.select[name]
            verdicts: Sequence[Any] = [(snapshot.folder, commit) for commit in snapshot.commits]
        except RunError:  # not selected yet: the scores are there all the same
            verdicts = [None] * len(chain.scored[name])
        found += [
            AnnotatedSlice(part=part, verdicts=one) for part, one in zip(chain.scored[name], verdicts, strict=True)
        ]
    return found


def _schema(chain: Chain, modality: str, slices: Sequence[AnnotatedSlice]) -> pl.Schema:
    scores = chain.passes[modality].columns
    piece = slices[0].part.piece
    index = open_rows(piece.folder, piece.commit)
    told = index.read([name for name in index.columns if name not in {*_NOT_TOLD, *scores, *VERDICTS, "source"}])
    return pl.Schema({"source": pl.String(), "key": pl.String(), **scores, "fail_reason": pl.String(), **VERDICTS,
                      **told.schema})  # fmt: skip


def _beside(frame: pl.DataFrame, other: pl.DataFrame) -> pl.DataFrame:
    if frame["key"].equals(other["key"]):
        return frame.hstack(other.drop("key"))
    return frame.join(other, on="key", how="left", maintain_order="left")


def _told(error: Exception, chain: Chain, tables: Collection[str]) -> str:
    """Say what is wrong with a query, and what it may name."""
    why = " ".join(str(error).split("; valid columns")[0].split("Resolved plan")[0].split())[:300]
    if isinstance(error, pl.exceptions.ColumnNotFoundError):
        names = {modality: ", ".join(_schema(chain, modality, _slices(chain, modality))) for modality in tables}
        return f"--sql: {why}; " + "; ".join(f"{modality} has {columns}" for modality, columns in names.items())
    return f"--sql: {why}; tables: {', '.join(tables) or 'none'}"
