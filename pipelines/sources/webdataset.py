"""WebDataset tars, img2dataset's layout included: the members of a sample stand together and share a key.

The tar is read once, front to back (about 1 GB/s with hashing on local disk), and never rewritten. A Parquet table of
the same name beside it, as img2dataset leaves one, is joined by key; its rows are held in memory (5 KB each).
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from typing import IO, Any

from tokenmill.errors import ManifestError, RunError, SampleError
from tokenmill.manifests.archive import Member, iterate_members, split_name
from tokenmill.manifests.identity import digest_of, sha256_hex
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.sources.layouts import check_layout
from tokenmill.pipelines.sources.metadata import metadata_text, text_or_none
from tokenmill.pipelines.sources.source import IndexRow, Modality, RawFile, list_files
from tokenmill.pipelines.sources.tables import table_rows
from tokenmill.pipelines.sources.tar_documents import tar_document

EXTENSIONS: dict[str, tuple[str, ...]] = {
    "image": ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"),
    "video": ("mp4", "webm", "mkv", "mov", "avi"),
}
_Found = tuple[Member, bytes]


class WebDatasetSource:
    """Samples of `modality` in tars; the caption is the `.txt` member, or the field `caption` of the `.json` member.

    With `join_parquet`, what neither of them says comes from the row of the table beside the tar that has the key.
    A document is its `.json` member, read in a `layout`, and the pictures it shows.
    """

    version = 2
    packs = False

    def __init__(
        self,
        *,
        url: str,
        modality: Modality = "image",
        caption_field: str = "caption",
        join_parquet: bool = True,
        layout: str = "auto",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.modality = modality
        self.caption_field = caption_field
        self.join_parquet = join_parquet
        if layout != "auto" and modality != "document":
            raise ValueError("layout: is of documents; set modality: document")
        self.layout = check_layout(layout)
        self.store = open_store(url, options)

    @property
    def settings(self) -> Mapping[str, Any]:
        left_out = {} if self.join_parquet else {"join_parquet": False}  # a table counts in the mark of its shard
        layout = {"layout": self.layout} if self.modality == "document" else {}
        return {"modality": self.modality, "caption_field": self.caption_field, **left_out, **layout}

    def files(self) -> list[RawFile]:
        if not self.join_parquet:
            return list_files(self.store, (".tar",))
        found = list_files(self.store, (".tar", ".parquet"))
        tables = {_stem(file.path): file for file in found if file.path.lower().endswith(".parquet")}
        shards = [file for file in found if file.path.lower().endswith(".tar")]
        if not shards:
            raise RunError(f"{self.store.url}: no file ends in .tar")
        return [_with_table(shard, tables.get(_stem(shard.path))) for shard in shards]

    def index(self, file: RawFile) -> Iterator[IndexRow]:
        """Yield the samples in the order of the tar, then what of the table is not there.

        Raises:
            ManifestError: the table beside the tar cannot be read, or has no keys.
        """
        cuts: list[SampleError] = []
        described, odd = self._table(file.extra.get("table"))
        with self.store.open(file.path) as stream:
            for key, group in groupby(_until_cut(stream, cuts), key=lambda found: split_name(found[0].name)[0]):
                yield self._row(file.path, key, list(group), described.pop(key, {}))
        yield from odd
        for error in cuts:
            yield IndexRow(key=f"{file.path}#end", path=file.path, error=error)
        for key, row in described.items():
            if row.get("status", "success") == "success":  # the others were never there
                error = SampleError("not_in_archive", "the table beside the tar has it, the tar has not")
                yield IndexRow(key=key, path=file.path, metadata=metadata_text(row), error=error)

    def payload(self, data: bytes, extension: str) -> bytes:
        return data

    def _table(self, path: str | None) -> tuple[dict[str, dict[str, Any]], list[IndexRow]]:
        """Return key → row of the table beside a tar, and a failure for each of its rows that cannot be read."""
        if path is None:
            return {}, []
        try:
            found = list(table_rows(self.store, path))
        except RunError as error:  # of this shard alone: the others go on
            raise ManifestError(f"{error}; restore it, or set join_parquet: false") from error
        rows = [row for _, row in found if isinstance(row, dict)]
        odd = [IndexRow(key=f"{path}#{n}", path=path, error=row) for n, row in found if isinstance(row, SampleError)]
        if rows and "key" not in rows[0]:
            raise ManifestError(
                f"{self.store.url}/{path}: no column 'key' to join by; set join_parquet: false, or move it elsewhere"
            )
        return {str(row["key"]): row for row in rows}, odd

    def _row(self, path: str, key: str, group: list[_Found], described: Mapping[str, Any]) -> IndexRow:
        if self.modality == "document":
            return tar_document(path, key, group, self.layout, described, EXTENSIONS["image"])
        by_extension = {split_name(member.name)[1]: (member, data) for member, data in group}
        extension = next((e for e in EXTENSIONS[self.modality] if e in by_extension), None)
        own = _json_object(by_extension.get("json"))
        metadata = {**described, **{name: value for name, value in own.items() if value is not None or not described}}
        if extension is None:
            found = ", ".join(sorted(by_extension))
            return IndexRow(key=key, path=path, error=SampleError(f"no_{self.modality}", f"its members are: {found}"))
        member, data = by_extension[extension]
        text = by_extension.get("txt")
        caption = text[1].decode("utf-8", "replace") if text else text_or_none(metadata.get(self.caption_field))
        return IndexRow(
            key=key,
            path=path,
            offset=member.offset,
            length=member.length,
            extension=extension,
            sha256=sha256_hex(data),
            caption=caption,
            metadata=metadata_text(metadata),
        )


def _stem(path: str) -> str:
    return path.rpartition(".")[0]


def _with_table(shard: RawFile, table: RawFile | None) -> RawFile:
    """Make the table beside a shard part of what the shard is known by."""
    if table is None:
        return shard
    return replace(shard, mark=digest_of([shard.mark, table.mark]), extra={"table": table.path})


def _until_cut(stream: IO[bytes], cuts: list[SampleError]) -> Iterator[_Found]:
    """Yield members up to the end or the damage, which goes to `cuts`: the last sample before it is kept so."""
    try:
        yield from iterate_members(stream)
    except (tarfile.ReadError, EOFError):
        cuts.append(SampleError("truncated_archive", "the tar ends before its end-of-archive mark, or is damaged"))


def _json_object(found: _Found | None) -> dict[str, Any]:
    """Return a `.json` member as a mapping; one that cannot be read says so, and the sample stays."""
    if found is None:
        return {}
    try:
        value = json.loads(found[1])
    except (ValueError, RecursionError):
        return {"metadata_error": "the json member cannot be read"}
    return value if isinstance(value, dict) else {"value": value}
