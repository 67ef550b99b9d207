"""Takedown lists: which samples nobody may train on any more, and how a sample is recognised.

A list is `takedowns/<digest>.parquet` with a description beside it, published exclusively and last. Lists are never
changed; what applies is the union of all, so data that arrives later is matched too. Lists hold the identifiers
themselves (keys, normalised URLs, hashes). Matching costs a few µs a sample, some more where URLs are asked for, since
the metadata of every sample is parsed then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

import numpy as np
import polars as pl

from tokenmill.errors import ManifestError
from tokenmill.manifests.identity import digest_of, sha256_hex, short
from tokenmill.manifests.records import check_schema
from tokenmill.manifests.stagedir import read_table, table_bytes
from tokenmill.manifests.storage import Store

FOLDER = "takedowns"
REASON = "takedown"  # what a taken-down sample is counted under, wherever it is left out
TAKEDOWN_SCHEMA = 1
Kind = Literal["key", "url", "sha256", "phash"]
_COLUMNS: Mapping[str, Any] = {
    "kind": pl.String,
    "value": pl.String,
    "distance": pl.Int32,  # bits within which a perceptual hash is meant; 0 for all other kinds
    "asked": pl.Boolean,  # False: the digest of a sample that was found by another identifier
    "found": pl.Boolean,  # whether a sample was there when the list was written
}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Identifier:
    """One way to name samples: a key (`key` or `source/key`), a URL, a SHA-256, or a 64-bit perceptual hash."""

    kind: Kind
    value: str
    distance: int = 0


@dataclass(frozen=True)
class Takedowns:
    """The union of some lists; a sample is taken down if any identifier speaks of it."""

    identifiers: frozenset[Identifier]
    found: frozenset[Identifier] = frozenset()

    @cached_property
    def digest(self) -> str:
        return digest_of([[i.kind, i.value, i.distance] for i in sorted(self.identifiers)])

    @cached_property
    def has_hashes_of_looks(self) -> bool:
        return bool(self._of("phash"))

    def mask(self, rows: pl.DataFrame, source: str) -> pl.Series:
        """Say of every row whether it is taken down, by whichever of key, path, sha256, metadata and phash it has."""
        return pl.Series([bool(found) for found in self.matches(rows, source)], dtype=pl.Boolean)

    def matches(self, rows: pl.DataFrame, source: str) -> list[list[Identifier]]:
        """Return for every row the identifiers that speak of it."""
        columns = [c for c in ("key", "sha256", "metadata") if c in rows.columns]
        clips = rows["path"] if "start_frame" in rows.columns else [None] * rows.height
        shown = _pictures_of(rows)
        found = [
            self.of_sample(source, **row, pictures=pictures) + (self.of_sample(source, path) if path else [])
            for row, path, pictures in zip(rows.select(columns).iter_rows(named=True), clips, shown, strict=True)
        ]
        if "phash" in rows.columns and self.has_hashes_of_looks:
            for number, identifier in self._near(rows["phash"]):
                found[number].append(identifier)
        return found

    def of_sample(
        self, source: str, key: str, sha256: str | None = None, metadata: str | None = None,
        pictures: Sequence[str] = (),
    ) -> list[Identifier]:  # fmt: skip
        """Return the identifiers that speak of one sample; a clip is also asked for by the key of its film.

        `pictures` are the digests of the pictures in a document: one that is taken down takes the document with it.
        """
        keys = self._of("key")
        found = [keys[name] for name in (key, f"{source}/{key}") if name in keys]
        for digest in (sha256, *pictures) if sha256 else ():
            found += [i for i in (self._of("sha256").get(digest or ""),) if i]
        urls = self._of("url")
        if urls and metadata and metadata != "{}":
            found += [urls[url] for url in urls_in(metadata) if url in urls]
        return found

    def _of(self, kind: Kind) -> Mapping[str, Identifier]:
        return self._by_kind.get(kind, {})

    @cached_property
    def _by_kind(self) -> dict[str, dict[str, Identifier]]:
        found: dict[str, dict[str, Identifier]] = {}
        for identifier in sorted(self.identifiers):
            found.setdefault(identifier.kind, {})[identifier.value] = identifier
        return found

    def _near(self, hashes: pl.Series) -> Iterator[tuple[int, Identifier]]:
        places = np.flatnonzero(hashes.is_not_null().to_numpy())
        values = hashes.drop_nulls().cast(pl.UInt64).to_numpy()
        for value, identifier in self._of("phash").items():
            near = np.bitwise_count(values ^ np.uint64(int(value, 16))) <= identifier.distance
            yield from ((int(place), identifier) for place in places[near])


def read_takedowns(store: Store) -> Takedowns | None:
    """Return the union of all lists under a root, or None where there is none; raises ManifestError on damage."""
    names = list_names(store)
    if not names:
        return None
    tables = [read_list(store, name) for name in names]
    return Takedowns(
        frozenset(identifier for table in tables for identifier in _identifiers(table)),
        frozenset(identifier for table in tables for identifier in _identifiers(table.filter(pl.col("found")))),
    )


def list_names(store: Store) -> list[str]:
    """Return the 16 digits of every published list, sorted."""
    names = [entry.path.rsplit("/", 1)[-1] for entry in store.files(FOLDER)]
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def read_list(store: Store, name: str) -> pl.DataFrame:
    """Read one list by its 16 digits; raises ManifestError when it is not what its description says."""
    path = f"{FOLDER}/{name}.json"
    try:
        value = json.loads(store.read_bytes(path))
        check_schema(value["schema"], TAKEDOWN_SCHEMA, path)
        table = read_table(store, f"{FOLDER}/{name}.parquet", _COLUMNS, sha256=value["sha256"])
        digest = value["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{path}: not a takedown list ({error}); restore it") from error
    if digest != digest_of(table.rows()) or short(digest) != name:
        raise ManifestError(f"{path}: its digest is not that of its rows; restore it, or take the samples down again")
    return table


def write_list(
    store: Store,
    asked: Sequence[Identifier],
    derived: Sequence[Identifier],
    found: frozenset[Identifier],
    about: Mapping[str, Any],
) -> str:
    """Publish a list and return its 16 digits; `about` says when and why, and is part of no digest."""
    rows = [(i.kind, i.value, i.distance, i in set(asked), i in found) for i in sorted({*asked, *derived})]
    table = pl.DataFrame(rows, schema=dict(_COLUMNS), orient="row")
    digest = digest_of(table.rows())
    data = table_bytes(table, TAKEDOWN_SCHEMA)
    store.put(f"{FOLDER}/{short(digest)}.parquet", data)
    value = {"schema": TAKEDOWN_SCHEMA, "digest": digest, "sha256": sha256_hex(data), "rows": table.height, **about}
    described = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    store.put_exclusive(f"{FOLDER}/{short(digest)}.json", described.encode())
    return short(digest)


def _pictures_of(rows: pl.DataFrame) -> Sequence[Sequence[str]]:
    """Return the digests of the pictures in every row of an index of documents; none of anything else."""
    if "pictures" not in rows.columns:
        return [()] * rows.height
    digests = pl.col("pictures").list.eval(pl.element().struct.field("sha256"))
    return rows.select(digests).to_series().fill_null([]).to_list()


def urls_in(metadata: str) -> Iterator[str]:
    """Yield every URL in a sample's metadata (JSON), normalised: all texts that begin with a scheme, at any depth."""
    if "://" not in metadata and ":\\/\\/" not in metadata:
        return
    try:
        yield from map(normal_url, urls_of(json.loads(metadata)))
    except (ValueError, RecursionError):
        return


def urls_of(value: Any) -> Iterator[str]:
    """Yield every URL in JSON values as it stands there: all texts that begin with a scheme, at any depth."""
    if isinstance(value, str):
        if "://" in value[:12]:
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from urls_of(part)
    elif isinstance(value, list):
        for part in value:
            yield from urls_of(part)


def normal_url(url: str) -> str:
    """Return a URL without what does not change the picture: scheme, case of the host, default port, fragment.

    Percent-encoding is made uniform; the query counts, because it often is the picture's name.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return url.strip()
    where = host if port in (None, 80, 443) else f"{host}:{port}"
    path = quote(unquote(parts.path, errors="surrogateescape"), safe="/:@!$&'()*+,;=~-._", errors="surrogateescape")
    return f"{where}{path.rstrip('/')}" + (f"?{parts.query}" if parts.query else "")


def _identifiers(table: pl.DataFrame) -> Iterator[Identifier]:
    for kind, value, distance in table.select("kind", "value", "distance").iter_rows():
        yield Identifier(kind=kind, value=value, distance=distance)
