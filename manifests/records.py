"""Commit records: what one unit read, what became of its rows, and which files hold the result.

A record is the only thing that makes data exist: readers trust what a record names and nothing else. It holds no times,
hosts or counts of retries (those go to logs/), so the same unit gives the same bytes wherever it ran.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenmill.errors import ManifestError, SchemaError
from tokenmill.manifests.identity import digest_of, safe_name, short

RECORD_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRef:
    """One input of a unit: a file, a table or a set of logical rows, whole or a range of it.

    Attributes:
        name: path relative to its source, or the name of the unit it came from.
        digest: of its content, or of its logical values.
        start, end: the half-open range taken, in `unit_of_range`; None = all of it.
        unit_of_range: `rows`, `frames` or `bytes`.
    """

    name: str
    digest: str
    start: int | None = None
    end: int | None = None
    unit_of_range: str | None = None

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"name": self.name, "digest": self.digest}
        if self.start is not None:
            value |= {"start": self.start, "end": self.end, "of": self.unit_of_range}
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> InputRef:
        return cls(
            name=value["name"],
            digest=value["digest"],
            start=value.get("start"),
            end=value.get("end"),
            unit_of_range=value.get("of"),
        )


def unit_digest(inputs: tuple[InputRef, ...]) -> str:
    """Return the full identity of a unit: the digest of its inputs, in order."""
    return digest_of([reference.to_json() for reference in inputs])


def unit_name(inputs: tuple[InputRef, ...]) -> str:
    """Return `<first input's name>-<16 digits>`; stage and settings are not in it, they name the folder."""
    return unit_identity(inputs)[0]


def unit_identity(inputs: tuple[InputRef, ...]) -> tuple[str, str]:
    """Return a unit's name and its full digest."""
    first, digest = inputs[0], unit_digest(inputs)
    where = f"-{first.start:08d}" if first.start else ""
    return f"{safe_name(first.name)}{where}-{short(digest)}", digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What became of a unit's input rows: `rows_in = kept + dropped + failed` always; `out`: what the kept became."""

    rows_in: int
    kept: int
    out: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        total = self.kept + sum(self.dropped.values()) + sum(self.failed.values())
        if total != self.rows_in:
            raise ManifestError(
                f"counts do not add up: in {self.rows_in} != kept {self.kept} + dropped {dict(self.dropped)} "
                f"+ failed {dict(self.failed)}"
            )

    def to_json(self) -> dict[str, Any]:
        return {
            "in": self.rows_in,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "failed": dict(sorted(self.failed.items())),
            "out": self.out,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Counts:
        return cls(
            rows_in=value["in"], kept=value["kept"], out=value["out"], dropped=value["dropped"], failed=value["failed"]
        )

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            rows_in=self.rows_in + other.rows_in,
            kept=self.kept + other.kept,
            out=self.out + other.out,
            dropped=_added(self.dropped, other.dropped),
            failed=_added(self.failed, other.failed),
        )


NO_COUNTS = Counts(rows_in=0, kept=0, out=0)


def _added(one: Mapping[str, int], two: Mapping[str, int]) -> dict[str, int]:
    return {key: one.get(key, 0) + two.get(key, 0) for key in sorted({*one, *two})}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a unit, relative to the stage folder; `role` is `data` (an archive) or `rows` (a table)."""

    name: str
    role: str
    bytes: int
    sha256: str

    @property
    def is_outside(self) -> bool:
        """Whether it lies outside of the folder (`/` path in the store, or a URL): others wrote it, it is only read."""
        return self.name.startswith("/") or "://" in self.name

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "role": self.role, "bytes": self.bytes, "sha256": self.sha256}


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """The record of one unit.

    Attributes:
        config: full digest of the stage's settings (the folder carries 16 digits of it).
        attempt: 0, or higher for a retry of failed samples, which then names its predecessor's record digest.
        digests: logical digests later stages build their identities from (for instance of the kept rows).
        totals: sums such as `bytes`, `tokens`, `codes`, `seconds`.
    """

    stage: str
    source: str
    config: str
    unit: str
    inputs: tuple[InputRef, ...]
    counts: Counts
    files: tuple[FileEntry, ...]
    attempt: int = 0
    predecessor: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    totals: Mapping[str, int] = field(default_factory=dict)

    def file(self, role: str) -> FileEntry | None:
        """Return the file with a role, or None."""
        return next((entry for entry in self.files if entry.role == role), None)

    @property
    def rows(self) -> FileEntry:
        """The unit's table; every unit of every stage has one."""
        entry = self.file("rows")
        if entry is None:
            raise ManifestError(f"record {self.unit}: names no table")
        return entry

    @property
    def data(self) -> FileEntry:
        """The unit's archive; only stages that write tars have one."""
        entry = self.file("data")
        if entry is None:
            raise ManifestError(f"record {self.unit}: names no archive")
        return entry

    @property
    def record_name(self) -> str:
        return f"commits/{self.unit}.{self.attempt}.json"

    def to_bytes(self) -> bytes:
        """Return the record as it stands on disk: readable JSON, sorted keys, no times."""
        value = {
            "schema": RECORD_SCHEMA,
            "stage": self.stage,
            "source": self.source,
            "config": self.config,
            "unit": self.unit,
            "unit_digest": unit_digest(self.inputs),
            "attempt": self.attempt,
            "predecessor": self.predecessor,
            "inputs": [reference.to_json() for reference in self.inputs],
            "counts": self.counts.to_json(),
            "files": [entry.to_json() for entry in self.files],
            "digests": dict(self.digests),
            "totals": dict(self.totals),
        }
        return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Commit:
        """Read a record; raises ManifestError (naming `where`) if it isn't one, SchemaError if it is too new."""
        try:
            value = json.loads(data)
            check_schema(value["schema"], RECORD_SCHEMA, where)
            commit = cls(
                stage=value["stage"],
                source=value["source"],
                config=value["config"],
                unit=value["unit"],
                inputs=tuple(InputRef.from_json(item) for item in value["inputs"]),
                counts=Counts.from_json(value["counts"]),
                files=tuple(FileEntry(**item) for item in value["files"]),
                attempt=value["attempt"],
                predecessor=value["predecessor"],
                digests=value["digests"],
                totals=value["totals"],
            )
        except SchemaError:
            raise
        except (ManifestError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ManifestError(f"{where}: not a commit record ({error}); remove it and run the stage again") from error
        if value["unit_digest"] != unit_digest(commit.inputs):
            raise ManifestError(f"{where}: its unit digest is not that of its inputs")
        return commit


def check_schema(found: object, known: int, where: str) -> None:
    """Refuse a file written by a newer tokenmill, by name; raises SchemaError."""
    if not isinstance(found, int) or found > known:
        raise SchemaError(f"{where}: schema {found!r}, this tokenmill reads up to {known}; update it")
