"""Folders of loose files: pictures, which ingest packs into shards, and video files, which stay where they are.

A sidecar `captions.jsonl` (`{"file": …, "caption": …, …}`) brings captions and metadata; its rows count as part of the
files they speak of, so changing one caption costs one unit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from tokenmill.errors import RunError
from tokenmill.manifests.identity import digest_of, sha256_hex
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.sources.film_seconds import FilmSeconds
from tokenmill.pipelines.sources.metadata import metadata_text
from tokenmill.pipelines.sources.source import IndexRow, Modality, RawFile, list_files
from tokenmill.pipelines.sources.webdataset import EXTENSIONS


class _Folder:
    modality: Modality
    version = 1
    packs = False

    def __init__(
        self,
        *,
        url: str,
        sidecar: str = "captions.jsonl",
        caption_field: str = "caption",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.sidecar = sidecar
        self.caption_field = caption_field
        self.store = open_store(url, options)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"sidecar": self.sidecar, "caption_field": self.caption_field}

    @cached_property
    def _described(self) -> dict[str, dict[str, Any]]:
        if not self.store.exists(self.sidecar):
            return {}
        described = {}
        for number, line in enumerate(self.store.read_bytes(self.sidecar).decode("utf-8", "replace").splitlines(), 1):
            try:
                row = json.loads(line)
                described[str(row["file"])] = json.loads(metadata_text(row))  # what is no JSON elsewhere (NaN) is null
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise RunError(
                    f"{self.store.url}/{self.sidecar}:{number}: not a JSON row with a file: {error}"
                ) from error
        return described

    def files(self) -> list[RawFile]:
        found = list_files(self.store, [f".{extension}" for extension in EXTENSIONS[self.modality]])
        return [self._with_description(file) for file in found]

    def _with_description(self, file: RawFile) -> RawFile:
        described = self._described.get(file.path, {})
        return replace(file, mark=digest_of([file.mark, described]), extra={"described": described, "mark": file.mark})

    def payload(self, data: bytes, extension: str) -> bytes:
        return data

    def _row(self, file: RawFile, sha256: str, payload: bytes | None) -> IndexRow:
        described = dict(file.extra.get("described", {}))
        caption = described.get(self.caption_field)
        return IndexRow(
            key=file.path,
            path=file.path,
            length=file.size,
            extension=file.path.rsplit(".", 1)[-1].lower(),
            sha256=sha256,
            caption=str(caption) if caption is not None else None,
            metadata=metadata_text(described),
            payload=payload,
        )


class ImageFolder(_Folder):
    """Pictures in a folder tree; ingest packs them into tars of img2dataset's layout."""

    modality: Modality = "image"
    packs = True

    def index(self, file: RawFile) -> Iterator[IndexRow]:
        data = self.store.read_bytes(file.path)
        yield self._row(file, sha256_hex(data), data)


class VideoFolder(_Folder):
    """Video files in a folder tree; too large to hash or move, so their digest is the mark (size, head, tail)."""

    modality: Modality = "video"
    version = 2

    @cached_property
    def _seconds(self) -> FilmSeconds:
        return FilmSeconds(self.store)

    def index(self, file: RawFile) -> Iterator[IndexRow]:
        row = self._row(file, str(file.extra["mark"]), None)
        yield replace(row, seconds=self._seconds(file.path, file.size))
