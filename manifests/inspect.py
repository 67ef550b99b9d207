"""Inspect: say what lies at a path, as JSON values and as text for people.

Only looks: footers, records and single samples are read, never a whole archive that has an index. Whatever decodes text
or pictures belongs to other rooms and is handed in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenmill.errors import ManifestError, StorageError
from tokenmill.manifests.inspect_plan import describe_plan, render_plan
from tokenmill.manifests.inspect_sample import OpenDecoders, describe_archive, describe_sample, table_row
from tokenmill.manifests.ledger import sum_of_numbers
from tokenmill.manifests.records import NO_COUNTS, Commit, Counts
from tokenmill.manifests.sample_list import DESCRIPTION
from tokenmill.manifests.snapshots import read_description, snapshot_names
from tokenmill.manifests.stagedir import StageDir, stage_dir_at
from tokenmill.manifests.storage import Store
from tokenmill.manifests.takedowns import REASON
from tokenmill.manifests.verify import stage_folders

_FIRST_ROWS = 5
_LONGEST_TEXT = 400


def inspect(
    store: Store,
    path: str,
    key: str | None = None,
    *,
    open_decoders: OpenDecoders | None = None,
    picture_to: Path | None = None,
) -> dict[str, Any]:
    """Describe what lies at a path (`""` is the store's root).

    Args:
        key: of a sample in an archive or a table, which is then described instead.
        open_decoders: makes decoders from the settings of a tokenize stage; without it texts and pictures stay ids.
        picture_to: folder for the sample's picture.
    Raises:
        ManifestError: nothing is there, it is damaged, or it holds no such key.
    """
    if path and store.exists(path):
        return {"path": path, **_describe_file(store, path, key, open_decoders, picture_to)}
    if key is not None:
        raise ManifestError(f"{store.url}/{path}: --key wants an archive or a table")
    return {"path": path, **_describe_folder(store, path)}


def render(description: Mapping[str, Any]) -> str:
    """Return a description as text."""
    if description.get("kind") == "plan" and "windows" in description:
        head = {name: description[name] for name in ("path", "kind")}
        return "\n".join([*_lines(head, 0), *render_plan({n: v for n, v in description.items() if n not in head})])
    return "\n".join(_lines(description, 0))


def _describe_file(
    store: Store, path: str, key: str | None, open_decoders: OpenDecoders | None, picture_to: Path | None
) -> dict[str, Any]:
    if path.endswith(".tar"):
        if key is not None:
            return describe_sample(store, path, key, open_decoders, picture_to)
        return describe_archive(store, path)
    if path.endswith(".parquet"):
        return _table(store, path) if key is None else {"kind": "row", "row": table_row(store, path, key)}
    if path.endswith(".json"):
        return _json_file(store, path)
    return {"kind": "file", "bytes": store.size(path)}


def _describe_folder(store: Store, path: str) -> dict[str, Any]:
    if store.exists(f"{path}/plan.json" if path else "plan.json"):
        return {"kind": "plan", **describe_plan(store, path)}
    if store.exists(place := f"{path}/checkpoint.json" if path else "checkpoint.json"):
        return {"kind": "checkpoint", **_told("checkpoint", _json(store, place))}
    if store.exists(f"{path}/{DESCRIPTION}" if path else DESCRIPTION):
        return _tokenizer(store, path)
    listing = store.files(path)
    if not listing:
        raise ManifestError(f"{store.url}/{path}: nothing is there")
    folders = sorted(stage_folders(store, listing))
    if path in folders:
        return _stage(stage_dir_at(store, path))
    sizes = {folder: sum(e.size for e in listing if e.path.startswith(f"{folder}/")) for folder in folders}
    units = {folder: sum(e.path.startswith(f"{folder}/commits/") for e in listing) for folder in folders}
    return {
        "kind": "folder",
        "files": len(listing),
        "bytes": sum(entry.size for entry in listing),
        "stages": [{"folder": folder, "records": units[folder], "bytes": sizes[folder]} for folder in folders],
    }


def _tokenizer(store: Store, path: str) -> dict[str, Any]:
    """Describe the run of a tokenizer's training: its samples, its checkpoints, and what was exported."""
    place = f"{path}/" if path else ""
    listed = _json(store, f"{place}{DESCRIPTION}")
    steps = [name for name in store.folders(path) if store.exists(f"{place}{name}/checkpoint.json")]
    exported = f"{place}export/training.json"
    told = _json(store, exported) if store.exists(exported) else {}
    return {
        "kind": "tokenizer",
        "samples": listed.get("samples"),
        "held_out": listed.get("held_out"),
        "list": listed.get("digest"),
        "checkpoints": sorted(int(name.removeprefix("step-")) for name in steps),
        **{name: told[name] for name in ("step", "measured", "settings") if name in told},
        "export": f"{place}export" if told else None,
    }


def _stage(folder: StageDir) -> dict[str, Any]:
    commits = [folder.read_commit(unit, attempt) for unit, attempt in sorted(folder.record_names().items())]
    counts = sum((commit.counts for commit in commits), NO_COUNTS)
    return {
        "kind": "stage",
        **folder.config.value,
        **({"about": dict(folder.config.about)} if folder.config.about else {}),
        "source": folder.source,
        "config": folder.config.digest,
        "records": len(commits),
        "bytes": sum(entry.bytes for commit in commits for entry in commit.files),
        "counts": counts.to_json(),
        **({"totals": _sums(commits)} if folder.config.stage in ("caption", "choose") else {}),
        **({"funnel": _funnel(folder, counts, commits)} if folder.config.stage == "select" else {}),
        "snapshots": {name: _brief_snapshot(folder, name) for name in snapshot_names(folder)},
    }


def _sums(commits: Sequence[Commit]) -> dict[str, int]:
    """Add up the totals of the newest records: all that was ever asked in a folder of answers.

    `unanswered` is left out: units of several selections count the same question.
    """
    return {name: number for name, number in sum_of_numbers(commits, "totals").items() if name != "unanswered"}


def _funnel(folder: StageDir, counts: Counts, commits: Sequence[Commit]) -> list[dict[str, Any]]:
    """Return what each rule of a selection dropped in its turn, from its records."""
    rules = [rule[0] for rule in folder.config.settings["rules"]]
    left = counts.rows_in - sum(counts.failed.values()) - counts.dropped.get(REASON, 0)
    steps = []
    for rule in rules:
        unknown = counts.dropped.get(f"{rule}:null", 0)
        dropped = counts.dropped.get(rule, 0) + unknown
        rescued = sum(commit.totals.get(f"rescued.{rule}", 0) for commit in commits)
        steps.append({"rule": rule, "in": left, "dropped": dropped, "of_these_null": unknown, "rescued": rescued})
        left -= dropped
    return steps


def _brief_snapshot(folder: StageDir, name: str) -> dict[str, Any]:
    described = read_description(folder, name)
    return {key: described[key] for key in ("num_units", "counts", "totals", "parents")}


def _table(store: Store, path: str) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with store.open(path) as stream:
            table = pq.ParquetFile(stream, page_checksum_verification=True)
            first = next(table.iter_batches(_FIRST_ROWS), None)
            rows = [] if first is None else first.to_pylist()
            schema = (table.schema_arrow.metadata or {}).get(b"tokenmill.schema", b"none").decode("ascii", "replace")
            columns = {field.name: str(field.type) for field in table.schema_arrow}
            return {"kind": "table", "schema": schema, "num_rows": table.metadata.num_rows, "columns": columns,
                    "rows": rows}  # fmt: skip
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ManifestError(f"{path}: not a readable table ({' '.join(str(error).split())})") from error


def _json_file(store: Store, path: str) -> dict[str, Any]:
    parts = path.split("/")
    inside = parts[-2] if len(parts) > 1 else store.url.rstrip("/").rsplit("/", 1)[-1]
    if inside == "commits":
        return {"kind": "record", **json.loads(Commit.from_bytes(store.read_bytes(path), path).to_bytes())}
    kinds = {"plan.json": "plan", "checkpoint.json": "checkpoint", "config.json": "settings"}
    kind = "snapshot" if inside == "snapshots" else kinds.get(parts[-1], "json")
    return {"kind": kind, **_told(kind, _json(store, path))}


def _told(kind: str, value: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is only there for machines."""
    if kind != "checkpoint":
        return value
    files = value.get("files", [])
    return {
        **{name: part for name, part in value.items() if name not in ("tensors", "files")},
        "num_tensors": len(value.get("tensors", {})),
        "bytes": sum(entry["bytes"] for entry in files),
        "files": [entry["name"] for entry in files],
    }


def _json(store: Store, path: str) -> dict[str, Any]:
    try:
        value = json.loads(store.read_bytes(path))
    except (ValueError, StorageError) as error:
        raise ManifestError(f"{path}: cannot be read as JSON ({error})") from error
    return value if isinstance(value, dict) else {"value": value}


def _lines(value: Any, depth: int) -> Iterator[str]:
    """Yield a mapping or list as indented lines; what is short stands on one."""
    indent = "  " * depth
    items = value.items() if isinstance(value, Mapping) else ((str(number), part) for number, part in enumerate(value))
    for name, part in items:
        if isinstance(part, Mapping | list) and len(json.dumps(part, default=str)) > 90:
            yield f"{indent}{name}:"
            yield from _lines(part, depth + 1)
        else:
            yield f"{indent}{name}: {_short(part)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, int) and not isinstance(value, bool):
        text = f"{value:,}"
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}… ({len(text):,} characters)"
