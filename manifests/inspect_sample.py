"""Inspect an archive or one sample in it; with an index that is one ranged read a member, without one a walk."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import ManifestError, StorageError
from tokenmill.manifests.archive import escape_key, iterate_members, split_name
from tokenmill.manifests.identity import safe_name
from tokenmill.manifests.records import Commit
from tokenmill.manifests.stagedir import StageDir, read_table, stage_dir_at
from tokenmill.manifests.storage import Store

_FIRST_KEYS = 10
_MOST_FRAMES = 8


@dataclass(frozen=True, kw_only=True)
class Decoders:
    """What turns stored ids back: `text` takes text ids, `frames` codes of shape (t, h, w) and gives THWC uint8."""

    text: Callable[[Sequence[int]], str] | None = None
    frames: Callable[[NDArray[Any]], NDArray[np.uint8]] | None = None


OpenDecoders = Callable[[Mapping[str, Any]], Decoders]


def describe_archive(store: Store, path: str) -> dict[str, Any]:
    """Describe an archive by its index, or where it has none by its members."""
    found = unit_of(store, path)
    if found is None:
        with store.open(path) as stream:
            keys = _keys(path, stream)
        return {"kind": "archive", "bytes": store.size(path), "num_samples": len(keys), "keys": keys[:_FIRST_KEYS]}
    folder, commit = found
    rows = folder.read_rows(commit)
    good = rows.filter(pl.col("fail_reason").is_null()) if "fail_reason" in rows.columns else rows
    sums: dict[str, Any] = {
        name: int(good[name].sum() or 0) for name in ("num_text", "num_codes") if name in rows.columns
    }
    return {
        "kind": "archive",
        "stage": commit.stage,
        "source": commit.source,
        "unit": commit.unit,
        "bytes": commit.data.bytes,
        "sha256": commit.data.sha256,
        "counts": commit.counts.to_json(),
        "num_samples": good.height,
        **sums,
        "keys": good["key"][:_FIRST_KEYS].to_list(),
    }


def describe_sample(
    store: Store, path: str, key: str, open_decoders: OpenDecoders | None, picture_to: Path | None
) -> dict[str, Any]:
    """Describe one sample of an archive; raises ManifestError if it holds no such key."""
    found = unit_of(store, path)
    if found is None:
        return _raw_sample(path, key, _walk(store, path, key), picture_to)
    folder, commit = found
    row = _row(folder.read_rows(commit), key, path)
    if row.get("fail_reason") is not None:
        return {"kind": "sample", **{name: value for name, value in row.items() if value is not None}}
    if "codes_offset" not in row:
        data = store.read_range(path, row["offset"], row["length"])
        members = {row["extension"]: data, "json": str(row["metadata"]).encode()}
        said = row["caption"] if "caption" in row else row.get("prompt")  # of a raw sample, or of one that was drawn
        if said is not None:
            members["txt"] = str(said).encode()
        return _raw_sample(path, key, members, picture_to)
    decoders = open_decoders(folder.config.settings) if open_decoders is not None else Decoders()
    return _token_sample(store, path, row, decoders, picture_to)


def table_row(store: Store, path: str, key: str) -> dict[str, Any]:
    """Return the row of a key in a unit's table."""
    return _row(read_table(store, path), key, path)


def _token_sample(
    store: Store, path: str, row: Mapping[str, Any], decoders: Decoders, picture_to: Path | None
) -> dict[str, Any]:
    members = {
        name: store.read_range(path, row[f"{name}_offset"], row[f"{name}_length"]) for name in ("codes", "text", "json")
    }
    document = json.loads(members["json"])
    text_ids, codes = (np.load(io.BytesIO(members[name]), allow_pickle=False) for name in ("text", "codes"))
    segments = []
    for number, segment in enumerate(document.pop("segments")):
        described = dict(segment)
        if "text" in segment and decoders.text is not None:
            start, end = segment["text"]
            described["says"] = decoders.text([int(one) for one in text_ids[start:end]])
        if "vision" in segment and decoders.frames is not None and picture_to is not None:
            t, h, w = segment["vision"]
            codes_thw = codes[segment["offset"] : segment["offset"] + t * h * w].reshape(t, h, w)
            name = f"{safe_name(row['key'].replace('.', '_'))}-{number}.png"
            described["picture"] = write_png(picture_to / name, decoders.frames(codes_thw))
        segments.append(described)
    sizes = {"num_text": len(text_ids), "num_codes": len(codes)}
    return {"kind": "sample", "modality": row["modality"], **document, **sizes, "segments": segments}


def _raw_sample(path: str, key: str, members: Mapping[str, bytes], picture_to: Path | None) -> dict[str, Any]:
    """Describe a sample of a raw shard; its picture is written out as it is."""
    if not members:
        raise ManifestError(f"{path}: holds no sample {key!r}")
    described: dict[str, Any] = {"kind": "sample", "key": key, "members": {e: len(d) for e, d in members.items()}}
    for extension, data in members.items():
        if extension in ("txt", "json"):
            described[extension] = data.decode("utf-8", "replace")
        elif picture_to is not None:
            target = picture_to / f"{safe_name(key.replace('.', '_'))}.{safe_name(extension)}"
            target.write_bytes(data)
            described["picture"] = str(target)
    return described


def write_png(target: Path, frames_THWC: NDArray[np.uint8]) -> str:
    """Write frames beside each other, a clip's evenly spaced ones."""
    from PIL import Image

    count = min(len(frames_THWC), _MOST_FRAMES)
    chosen = frames_THWC[np.linspace(0, len(frames_THWC) - 1, count).round().astype(int)]
    Image.fromarray(np.concatenate(list(chosen), axis=1)).save(target)
    return str(target)


def unit_of(store: Store, path: str) -> tuple[StageDir, Commit] | None:
    """Find the record that names an archive, or None where it is not part of a stage."""
    parent, _, name = path.rpartition("/")
    try:
        folder = stage_dir_at(store, parent)
        unit = name.removesuffix(".tar").rpartition("-")[0]
        attempt = folder.record_names().get(unit, -1)
        while attempt >= 0:
            commit = folder.read_commit(unit, attempt)
            if any(entry.name == name for entry in commit.files):
                return folder, commit
            attempt -= 1
    except (ManifestError, StorageError):
        return None
    return None


def _row(rows: pl.DataFrame, key: str, path: str) -> dict[str, Any]:
    found = rows.filter(pl.col("key") == key) if "key" in rows.columns else rows.clear()
    if not found.height:
        raise ManifestError(f"{path}: holds no sample {key!r}")
    return found.row(0, named=True)


def _walk(store: Store, path: str, key: str) -> dict[str, bytes]:
    """Go through an archive up to the end of one sample."""
    found: dict[str, bytes] = {}
    try:
        with store.open(path) as stream:
            for member, data in iterate_members(stream):
                name, extension = split_name(member.name)
                if name in (key, escape_key(key)):
                    found[extension] = data
                elif found:
                    break
    except tarfile.TarError as error:
        if not found:
            raise ManifestError(f"{path}: not a whole tar ({error})") from error
    return found


def _keys(path: str, stream: Any) -> list[str]:
    try:
        return list(dict.fromkeys(split_name(member.name)[0] for member, _ in iterate_members(stream)))
    except tarfile.TarError as error:
        raise ManifestError(f"{path}: not a whole tar ({error})") from error
