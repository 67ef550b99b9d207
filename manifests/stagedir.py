"""A stage's folder: where its settings, files, commit records and snapshots lie.

The folder's name says everything but the inputs that determines the content (settings, model fingerprints, versions),
so a changed setting is another folder and nothing is ever overwritten. The settings themselves stand in `config.json`,
for people; the full digest is in every record and is compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from itertools import islice
from typing import TYPE_CHECKING, Any

import polars as pl

from tokenmill.errors import ManifestError, StorageError
from tokenmill.faults import fault_point
from tokenmill.manifests.identity import digest_of, sha256_hex, short
from tokenmill.manifests.records import Commit, FileEntry
from tokenmill.manifests.storage import Store

if TYPE_CHECKING:
    import pyarrow as pa

ASIDE = (
    "logs/",
    "failures/",
    "rollups/",
    "references/",
)  # what stands beside a folder's data and records, and no digest covers
_RECORD_NAME = r"(?<unit>[^/]+)\.(?<attempt>[0-9]+)\.json$"
_NAMES_AT_ONCE = 65_536


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Everything but the inputs that determines what a stage writes.

    Attributes:
        stage: its name, which is also the folder below the root.
        version: of the stage's own code; golden outputs fail a test when the output changes without it.
        schema: of the tables and archives it writes.
        settings: what the recipe says, as JSON values.
        fingerprints: of models and plug-ins, by name.
        about: what a person may want to know beside it; decides nothing and is no part of the digest.
    """

    stage: str
    version: int
    schema: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def value(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "version": self.version,
            "schema": self.schema,
            "settings": dict(self.settings),
            "fingerprints": dict(self.fingerprints),
        }

    @cached_property
    def digest(self) -> str:
        return digest_of(self.value)


@dataclass(frozen=True, kw_only=True)
class StageDir:
    """`<root>/<stage>/<source>/<config>` of one store, and what may be done there."""

    store: Store
    source: str
    config: StageConfig
    base: str | None = None  # where the folder lies, if not at its usual place; "" is the root itself

    @cached_property
    def path(self) -> str:
        if self.base is not None:
            return self.base
        return f"{self.config.stage}/{self.source}/{short(self.config.digest)}"

    def at(self, name: str) -> str:
        """Return the path in the store of one of the folder's files.

        A name that begins with `/` begins at the folder's root, and a whole URL is itself: what a record may point at
        that others wrote and that lies outside of the folder.
        """
        if "://" in name:
            return name
        if name.startswith("/"):  # a folder of another root has a URL for a path: <root>/<stage>/<source>/<config>
            return f"{self.path.rsplit('/', 3)[0]}{name}" if "://" in self.path else name[1:]
        return f"{self.path}/{name}" if self.path else name

    def describe(self) -> None:
        """Write `config.json`, so that a person who looks into the folder learns what it is."""
        name = self.at("config.json")
        if not self.store.exists(name):
            value = {"config": self.config.digest, "source": self.source, **self.config.value}
            value |= {"about": dict(self.config.about)} if self.config.about else {}
            self.store.put_exclusive(name, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())

    def record_names(self) -> dict[str, int]:
        """Return unit → highest attempt, from one listing of `commits/`."""
        newest = self.record_table().group_by("unit", maintain_order=True).agg(pl.col("attempt").max())
        return dict(newest.iter_rows())

    def record_table(self) -> pl.DataFrame:
        """Return `unit` and `attempt` of every record, from one listing of names; all that a resume needs."""
        tables = [pl.DataFrame(schema={"unit": pl.String, "attempt": pl.Int32})]
        for names in _chunks(self.store.names(self.at("commits"))):
            parts = pl.Series(names).str.extract_groups(_RECORD_NAME).struct.unnest()
            tables.append(parts.with_columns(pl.col("attempt").cast(pl.Int32, strict=False)).drop_nulls())
        return pl.concat(tables)

    def read_commit(self, unit: str, attempt: int) -> Commit:
        """Read one record and check that it belongs here; raises ManifestError otherwise."""
        name = self.at(f"commits/{unit}.{attempt}.json")
        commit = Commit.from_bytes(self.store.read_bytes(name), name)
        self.check_commit(commit, unit, name)
        return commit

    def check_commit(self, commit: Commit, unit: str, name: str) -> None:
        """Refuse a record that was written elsewhere or for another unit; raises ManifestError naming it."""
        if commit.config != self.config.digest or commit.unit != unit:
            raise ManifestError(f"{name}: written under other settings ({commit.config[:16]}), or renamed")

    def read_rows(self, commit: Commit, columns: list[str] | None = None) -> pl.DataFrame:
        """Read a unit's table; raises ManifestError naming the file if it is not what its record says."""
        return read_table(self.store, self.at(commit.rows.name), columns, sha256=commit.rows.sha256)

    def publish_bytes(self, unit: str, suffix: str, data: bytes, role: str) -> FileEntry:
        """Publish a small file of a unit under a name that carries its own digest."""
        digest = sha256_hex(data)
        entry = FileEntry(name=f"{unit}-{digest[:8]}{suffix}", role=role, bytes=len(data), sha256=digest)
        self.store.put(self.at(entry.name), data)
        return entry

    def publish_commit(self, commit: Commit) -> Commit:
        """Publish a record; the first to do so wins, and whoever won is returned."""
        fault_point("commit:before-record")
        if self.store.put_exclusive(self.at(commit.record_name), commit.to_bytes()):
            fault_point("commit:after-record")
            return commit
        return self.read_commit(commit.unit, commit.attempt)


def _chunks(names: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(names)
    while chunk := list(islice(rest, _NAMES_AT_ONCE)):
        yield chunk


def table_bytes(frame: pl.DataFrame | pa.Table, schema: int) -> bytes:
    """Return a table as Parquet, the same bytes for the same rows, with the schema's version in its metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest()) if isinstance(frame, pl.DataFrame) else frame
    table = table.replace_schema_metadata({"tokenmill.schema": str(schema)})
    coded = [field.name for field in table.schema if pa.types.is_dictionary(field.type)]
    buffer = BytesIO()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        row_group_size=65_536,
        write_page_checksum=True,
        use_dictionary=coded or True,  # where strings are codes, what is left are numbers that hardly come twice
    )
    return buffer.getvalue()


def read_table(
    store: Store, path: str, columns: Iterable[str] | None = None, *, sha256: str | None = None
) -> pl.DataFrame:
    """Read a Parquet table; raises ManifestError naming it when it cannot be read or does not have its digest.

    Read by Arrow with page checksums: a flipped bit makes Polars' own reader abort the process, or changes values.
    """
    data = store.read_bytes(path)
    if sha256 is not None and sha256_hex(data) != sha256:
        raise ManifestError(f'{path}: sha256 differs from its record; run "tokenmill verify --deep" on its folder')
    try:
        return parse_table(data, columns)
    except ManifestError as error:
        raise ManifestError(f'{path}: {error}; run "tokenmill verify --deep" on its folder') from error


def parse_table(data: bytes, columns: Iterable[str] | None = None) -> pl.DataFrame:
    """Parse a Parquet table that may be damaged; raises ManifestError when it is, or lacks a column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = None if columns is None else list(columns)
    try:
        table = pq.ParquetFile(BytesIO(data), page_checksum_verification=True).read(wanted)
        frame = pl.DataFrame(table)
    except (pa.ArrowException, OSError, ValueError, pl.exceptions.PanicException) as error:
        raise ManifestError(f"not a readable table ({' '.join(str(error).split())})") from error
    missing = sorted(set(wanted or ()) - set(frame.columns))
    if missing:
        raise ManifestError(f"a table without column {missing[0]!r}")
    return frame if wanted is None else frame.select(wanted)


def stage_dir_at(store: Store, path: str) -> StageDir:
    """Open the folder at a path from its own `config.json`; raises ManifestError if it is none, or was renamed."""
    name = f"{path}/config.json" if path else "config.json"
    try:
        value = json.loads(store.read_bytes(name))
        config = StageConfig(
            stage=value["stage"],
            version=value["version"],
            schema=value["schema"],
            settings=value["settings"],
            fingerprints=value["fingerprints"],
            about=value.get("about", {}),
        )
        source, digest = value["source"], value["config"]
    except (StorageError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{name}: no stage folder (the file is missing or unreadable)") from error
    if config.digest != digest:
        raise ManifestError(f"{name}: its settings do not have the digest it claims")
    return StageDir(store=store, source=source, config=config, base=path)
