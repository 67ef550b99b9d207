"""The samples of one token archive: by its index, or front to back where the archive is no part of a stage's folder.

An archive of somebody else's says nothing trustworthy of itself, so arrays and segments are checked before anything is
made of them; one with an index is read by two ranged reads a sample.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import ManifestError, TokenmillError
from tokenmill.manifests.archive import escape_key, iterate_members, split_name
from tokenmill.manifests.inspect_sample import unit_of
from tokenmill.manifests.records import Commit
from tokenmill.manifests.stagedir import StageDir
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.stored import read_stored
from tokenmill.tokenize.segments import Segment, TextSegment, VisionSegment, segments_from_json

_MEMBERS = ("codes.npy", "text.npy", "json")
_KEYS_NAMED = 5
_COLUMNS = ["key", "segments", "fail_reason", "fail_message"]
_COLUMNS += [f"{member}_{what}" for member in ("codes", "text") for what in ("offset", "length")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedSample:
    """A sample whose segments reach exactly to the end of its text ids and codes (flat, unsigned)."""

    key: str
    segments: Sequence[Segment]
    text_ids: NDArray[np.unsignedinteger[Any]]
    codes: NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A sample that cannot be had: it is damaged, or failed to tokenize (`is_absent`)."""

    key: str
    what: str
    is_absent: bool = False


@dataclass(frozen=True, kw_only=True)
class TokenArchive:
    """An archive at `path` of a store, with the folder and the record it belongs to, if any."""

    store: Store
    path: str
    folder: StageDir | None
    commit: Commit | None

    @property
    def name(self) -> str:
        return f"{self.store.url}/{self.path}"

    def samples(self, key: str | None = None) -> Iterator[ArchivedSample | Fault]:
        """Yield all samples, or the one of a key.

        Raises ManifestError where there is no such key, for a tar that is cut off, and for one of another kind.
        """
        found = self._indexed(key) if self.folder is not None else self._walked(key)
        yield from found

    def _indexed(self, key: str | None) -> Iterator[ArchivedSample | Fault]:
        assert self.folder is not None and self.commit is not None
        table = self.folder.read_rows(self.commit, _COLUMNS)
        rows = [row for row in table.iter_rows(named=True) if key in (None, row["key"])]
        if key is not None and not rows:
            raise ManifestError(self._no_key(key, table["key"].to_list()))
        for row in rows:
            if row["segments"] is None:
                what = f"was not tokenized: {row['fail_reason']}: {row['fail_message']}"
                yield Fault(key=row["key"], what=what, is_absent=True)
                continue
            try:
                (sample,) = read_stored(self.store, self.path, [row])
                yield checked(row["key"], sample.segments, sample.text_ids, sample.codes)
            except TokenmillError as error:
                yield Fault(key=row["key"], what=str(error))

    def _walked(self, key: str | None) -> Iterator[ArchivedSample | Fault]:
        seen = []
        for name, members in self._groups():
            seen.append(name)
            if key is None:
                yield _sample(name, members)
            elif name in (key, escape_key(key)):
                yield _sample(key, members)
                return
        if key is not None or not seen:
            raise ManifestError(self._no_key(key, seen) if seen else f"{self.name}: an empty archive")

    def _groups(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Yield neighbouring members of one key, by extension."""
        name, members = "", dict[str, bytes]()
        try:
            with self.store.open(self.path) as stream:
                for member, data in iterate_members(stream):
                    key, extension = split_name(member.name)
                    if key != name and members:
                        yield name, members
                        members = {}
                    name = key
                    members[extension] = data
        except tarfile.TarError as error:
            raise ManifestError(f"{self.name}: not a whole tar ({' '.join(str(error).split())})") from error
        if members:
            yield name, members

    def _no_key(self, key: str | None, keys: Sequence[str]) -> str:
        more = ", …" if len(keys) > _KEYS_NAMED else ""
        named = ", ".join(repr(one) for one in keys[:_KEYS_NAMED])
        return f"{self.name}: holds no sample {key!r}; it has {len(keys):,}: {named}{more}"


def open_token_archive(store: Store, path: str) -> TokenArchive:
    """Open an archive; raises ManifestError where nothing is there, or its stage writes no tokens."""
    if not path or not store.exists(path):
        raise ManifestError(f"{store.url}/{path}: no such archive".replace("/:", ":"))
    if not path.endswith(".tar"):
        raise ManifestError(f"{store.url}/{path}: not a token archive, which is a .tar")
    found = unit_of(store, path)
    if found is None:
        return TokenArchive(store=store, path=path, folder=None, commit=None)
    folder, commit = found
    if commit.stage != "tokenize":
        raise ManifestError(f"{store.url}/{path}: not a token archive: stage {commit.stage} wrote it")
    return TokenArchive(store=store, path=path, folder=folder, commit=commit)


def checked(key: str, segments: Sequence[Segment], text_ids: NDArray[Any], codes: NDArray[Any]) -> ArchivedSample:
    """Return a sample whose arrays are what its segments say; raises ManifestError otherwise."""
    for what, array in (("codes", codes), ("text ids", text_ids)):
        if array.ndim != 1 or array.dtype.kind != "u":
            raise ManifestError(f"its {what} are {array.dtype} of shape {array.shape}, not a row of unsigned integers")
    ends = [segment.offset + segment.num_codes for segment in segments if isinstance(segment, VisionSegment)]
    if max(ends, default=0) != len(codes):
        grids = ", ".join(f"{s.t}×{s.h}×{s.w}" for s in segments if isinstance(s, VisionSegment)) or "none"
        raise ManifestError(f"its segments reach to code {max(ends, default=0)} (grids: {grids}); it has {len(codes)}")
    behind = max((segment.end for segment in segments if isinstance(segment, TextSegment)), default=0)
    if behind != len(text_ids):
        raise ManifestError(f"its segments reach to text id {behind}; it has {len(text_ids)}")
    return ArchivedSample(key=key, segments=segments, text_ids=text_ids, codes=codes)


def _sample(key: str, members: Mapping[str, bytes]) -> ArchivedSample | Fault:
    missing = [name for name in _MEMBERS if name not in members]
    if missing:
        return Fault(key=key, what=f"has no {missing[0]}: not a sample of a token archive")
    try:
        document = json.loads(members["json"])
        codes, text_ids = (np.load(BytesIO(members[name]), allow_pickle=False) for name in _MEMBERS[:2])
        return checked(str(document.get("key", key)), segments_from_json(document["segments"]), text_ids, codes)
    except ManifestError as error:
        return Fault(key=key, what=str(error))
    except (ValueError, EOFError, OSError, KeyError, TypeError, AttributeError) as error:
        return Fault(key=key, what=f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())})")
