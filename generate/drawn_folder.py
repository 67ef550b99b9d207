"""A folder that drawings go into: what is there already, what is lacking, and the index that tells which is which.

Each drawing has an identity: the digest of everything that decides about it. So asking again finds it, whatever else
was asked with it, and a run that was killed has lost one batch at most. The index is written anew after every batch
(950 bytes a drawing: 10,000 in batches of 8 write 6 GB of it; that many are a job for the stage). Two runs at once in
one folder leave each other's files alone, but the index has one's rows: the other draws its own again when asked again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill import __version__
from tokenmill.errors import ManifestError
from tokenmill.generate.drawn_files import TOKEN_COLUMNS, Drawn, file_stem, put_tokens
from tokenmill.manifests.identity import digest_of, sha256_hex
from tokenmill.manifests.named_tables import open_named_table
from tokenmill.manifests.storage import Store

INDEX = "generated.json"
SCHEMA = 1
_LAYOUT = "drawings"
_NO_IDENTITY = ("tokenmill", "notes")


def identity_of(about: Mapping[str, Any]) -> str:
    """Give the digest of what decides about a drawing: all of `about` but what was only observed."""
    return digest_of({name: value for name, value in about.items() if name not in _NO_IDENTITY})


class DrawnFolder:
    """Drawings of a store (the folder itself), found by identity.

    Raises:
        ManifestError: its index is damaged, of another layout, or of a newer schema.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[str, pl.DataFrame] = {}

    @property
    def url(self) -> str:
        return self._store.url

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Rows of the index by identity, in the order they were drawn, of files and ids that are there."""
        if not self._store.exists(INDEX):
            return {}
        try:
            told = json.loads(self._store.read_bytes(INDEX))
            layout, schema, rows = told["layout"], int(told["schema"]), list(told["pictures"])
            found = {str(row["identity"]): dict(row) for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            what = "is no index of drawings; name another folder, or move it away"
            raise ManifestError(f"{self._store.url}/{INDEX}: {what}") from error
        if layout != _LAYOUT or schema > SCHEMA:
            raise ManifestError(f"{self._store.url}/{INDEX}: {layout}, schema {schema}; known is {_LAYOUT}, {SCHEMA}")
        there = {entry.path: entry.size for entry in self._store.files()}
        return {
            name: row
            for name, row in found.items()
            if there.get(row["file"]) == row["bytes"] and row["tokens"] in there
        }

    def add(self, drawings: Sequence[Drawn]) -> list[dict[str, Any]]:
        """Write drawings, their ids, then the index; returns their rows."""
        rows = [self._put(one) for one in drawings]
        if rows:
            name, data = put_tokens(rows, [one.ids for one in drawings])
            self._store.put(name, data)
            rows = [row | {"tokens": name} for row in rows]
            self.rows.update({row["identity"]: row for row in rows})
            self._publish()
        return rows

    def ids(self, file: str) -> NDArray[np.int32]:
        """Return the ids of one of the files; raises ManifestError where the folder holds none of it."""
        row = next((row for row in self.rows.values() if row["file"] == file), None)
        if row is None:
            raise ManifestError(f"{self._store.url}/{INDEX}: holds no {file}")
        found = self._tokens(row["tokens"]).filter(pl.col("file") == file)["ids"]
        if not len(found):
            raise ManifestError(f"{self._store.url}/{row['tokens']}: has no ids of {file}")
        return np.array(found[0].to_list(), np.int32)

    def read(self, file: str) -> bytes:
        """Return the bytes of a file."""
        return self._store.read_bytes(file)

    def put(self, file: str, data: bytes) -> None:
        """Write a file that is no drawing, such as a contact sheet."""
        self._store.put(file, data)

    def _tokens(self, name: str) -> pl.DataFrame:
        if name not in self._read:
            self._read = {name: open_named_table(self._store, name).frame(TOKEN_COLUMNS)}  # the last one is kept
        return self._read[name]

    def _put(self, one: Drawn) -> dict[str, Any]:
        identity = identity_of(one.about)
        data = one.data()
        file = f"{file_stem(_words(one.about), int(one.about['seed']), identity)}{one.suffix}"
        self._store.put(file, data)
        clip = {} if one.fps is None else {"frames": len(one.frames)}
        return {
            **one.about,
            "file": file,
            "bytes": len(data),
            "sha256": sha256_hex(data),
            "ids_sha256": sha256_hex(one.ids.astype("<i4").tobytes()),
            "identity": identity,
            **clip,
        }

    def _publish(self) -> None:
        told = {
            "layout": _LAYOUT,
            "schema": SCHEMA,
            "tokenmill": __version__,
            "tokens": sorted({row["tokens"] for row in self.rows.values()}),
            "pictures": list(self.rows.values()),
        }
        self._store.put(INDEX, (json.dumps(told, indent=1, sort_keys=True) + "\n").encode())


def _words(about: Mapping[str, Any]) -> str:
    """Give what a file is named after: its prompt, or the clip that it goes on from."""
    return str(about["prompt"]) or str(about.get("extends", {}).get("name", "")).rpartition(".")[0]
