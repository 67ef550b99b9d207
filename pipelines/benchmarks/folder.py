"""The folder that a benchmark is drawn into: what is there, what is whole, and the drawn ids beside it.

    <folder>/run.json                 model, settings, counts; written first, so that another model is refused
             asked.jsonl              a line a prompt: what was asked, what the model was given, the files
             tokens-<sha8>.parquet    a row a sample: file, prompt, seed, ids, and the file's bytes and sha256
             …                        pictures or clips where the benchmark's scorer looks for them

Files are published whole, then the table that names them: a killed run loses at most one batch (`Work.batch`), and a
file counts when a table names it with the bytes it has. Nothing is staged in a folder that a scorer lists.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import RecipeError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.named_tables import open_named_table
from tokenmill.manifests.stagedir import table_bytes
from tokenmill.manifests.storage import Store

SCHEMA = 1
TOKEN_COLUMNS: dict[str, Any] = {
    "file": pl.String,  # of the picture, clip or grid, in the folder
    "name": pl.String,  # of the prompt in its benchmark
    "sample": pl.Int64,  # which of the prompt
    "prompt": pl.String,  # the benchmark's
    "text": pl.String,  # what the model was given: the prompt, or what a rewriter made of it
    "seed": pl.Int64,
    "ids": pl.List(pl.Int32),  # of the whole document, from BOS to EOS
    "bytes": pl.Int64,  # of the file
    "sha256": pl.String,
}
RUN, ASKED = "run.json", "asked.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSample:
    """One sample that was drawn."""

    file: str
    name: str
    sample: int
    prompt: str
    text: str
    seed: int
    ids: NDArray[np.int32]


class BenchmarkFolder:
    """One output folder, local or by URL; several processes may fill it at once."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def begin(self, identity: Mapping[str, Any], asked: Iterable[Mapping[str, Any]], told: Mapping[str, Any]) -> None:
        """Claim the folder; raises RecipeError where something else was drawn into it already."""
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in asked)
        described = {"schema": SCHEMA, **identity, **told, "drawn": {}}
        if self.store.put_exclusive(RUN, _json(described)):
            self.store.put(ASKED, lines.encode())
            return
        found = self.run()
        other = _differing(json.loads(_json(identity)), found)
        if other and self._tables():
            raise RecipeError(f"{self.store.url}: was drawn with other {', '.join(other)}; take another --out")
        if other or not self.store.exists(ASKED):
            self.store.put(RUN, _json(described))
            self.store.put(ASKED, lines.encode())

    def tell(self, **facts: Any) -> None:
        """Add to `run.json` what is known only with the model open; raises RecipeError where it says another."""
        found = self.run()
        other = [key for key, value in facts.items() if found.get(key, value) != value]
        if other:
            raise RecipeError(f"{self.store.url}: was drawn with other {', '.join(other)}; take another --out")
        if not facts.items() <= found.items():
            self.store.put(RUN, _json({**found, **facts}))

    def run(self) -> dict[str, Any]:
        """Return `run.json`; raises RecipeError where it is none."""
        try:
            found = json.loads(self.store.read_bytes(RUN))
        except ValueError as error:
            raise RecipeError(f"{self.store.url}/{RUN}: not JSON ({error})") from error
        return dict(found)

    def tokens(self, columns: Sequence[str] = tuple(TOKEN_COLUMNS)) -> pl.DataFrame:
        """Return what was drawn, in the order of files and samples; some columns, or all (`TOKEN_COLUMNS`)."""
        wanted = list(dict.fromkeys(("file", "sample", *columns)))
        tables = [open_named_table(self.store, name).frame(wanted) for name in self._tables()]
        schema = {name: TOKEN_COLUMNS[name] for name in wanted}
        rows = pl.concat(tables) if tables else pl.DataFrame(schema=schema)
        return rows.unique(["file", "sample"], keep="any").sort("file", "sample")

    def whole(self) -> set[str]:
        """Return the files that a table names and that have the bytes it says."""
        return self._whole(self.tokens(["bytes"]))

    def _whole(self, rows: pl.DataFrame) -> set[str]:
        there = {entry.path: entry.size for entry in self.store.files()}
        return {file for file, size in rows.select("file", "bytes").iter_rows() if there.get(file) == size}

    def publish(self, files: Mapping[str, bytes], drawn: Sequence[BenchmarkSample]) -> None:
        """Write files, then the table of their samples."""
        for file, data in files.items():
            self.put(file, data)
        rows = [
            (one.file, one.name, one.sample, one.prompt, one.text, one.seed, one.ids.tolist(), len(files[one.file]),
             sha256_hex(files[one.file]))
            for one in drawn
        ]  # fmt: skip
        data = table_bytes(pl.DataFrame(rows, schema=TOKEN_COLUMNS, orient="row"), SCHEMA)
        self.store.put(f"tokens-{sha256_hex(data)[:8]}.parquet", data)

    def put(self, file: str, data: bytes) -> None:
        """Write one file, staged outside the folders that scorers list."""
        with self.store.staging("") as staged:
            staged.write_bytes(data)
            self.store.put_file(file, staged)

    def count(self) -> dict[str, int]:
        """Tell in `run.json` how much is there, however many processes have ended meanwhile."""
        while True:
            tables = self._tables()
            rows = self.tokens(["bytes"])
            whole = self._whole(rows)
            counts = {"files": len(whole), "samples": sum(file in whole for file in rows["file"])}
            self.store.put(RUN, _json({**self.run(), "drawn": counts}))
            if self._tables() == tables:
                return counts

    def _tables(self) -> list[str]:
        return [name for name in self.store.names() if name.startswith("tokens-") and name.endswith(".parquet")]


def _differing(wanted: Mapping[str, Any], found: Mapping[str, Any], before: str = "") -> list[str]:
    """Name what is wanted otherwise than it is found, settings one by one: `settings.seed`."""
    names: list[str] = []
    for key, value in wanted.items():
        there = found.get(key)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            names += _differing(value, there, f"{before}{key}.")
        elif there != value:
            names.append(f"{before}{key}")
    return names


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
