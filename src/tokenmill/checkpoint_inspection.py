"""`tokenmill inspect` of a training run or of one of its checkpoints: where it stands, what lies there, how it went.

Weights are not read: names and sizes stand in the heads of the files. Digests are compared up to 4 GiB, some ten
seconds; what is larger is left to `tokenmill verify --deep`, and the report says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from math import prod
from typing import Any

from tokenmill.errors import ManifestError, StorageError
from tokenmill.manifests.findings import Findings
from tokenmill.manifests.sample_list import DESCRIPTION
from tokenmill.manifests.storage import Store, open_store
from tokenmill.manifests.tensor_heads import tensor_shapes
from tokenmill.manifests.verify_checkpoint import CHECKPOINT_RECORD, examine_checkpoint

_DIGESTS_UPTO_BYTES = 4 * 2**30
_LOSSES = 12  # rows of the run that are shown
_STEP, _METRICS, _START = "step-", "metrics.jsonl", "start.json"
_COLUMNS = ("step", "loss", "loss_text", "loss_vision", "lr", "grad_norm", "tokens_per_s", "mfu", "memory_gib")
_SIZES = (
    "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "intermediate_size", "max_position_embeddings", "tie_word_embeddings",
)  # fmt: skip
_SETTINGS = ("precision", "zero_stage", "ranks", "global_packs_per_step", "lr", "schedule")


def describe_training(path: str, storage: Mapping[str, Any]) -> dict[str, Any] | None:
    """Describe the folder of a run or of a checkpoint; None where neither lies at a URL or local path.

    Raises ManifestError for a damaged record.
    """
    above, _, name = path.rstrip("/").rpartition("/")
    if name.startswith(_STEP):
        run = open_store(above or ("/" if path.startswith("/") else "."), storage)
        if run.exists(f"{name}/{CHECKPOINT_RECORD}"):
            found = _checkpoint(run, name)
            return {"kind": "checkpoint", **found, **_losses(run, found["step"])}
    store = open_store(path.rstrip("/") or path, storage)
    if store.exists(DESCRIPTION):  # of a tokenizer's training, which `inspect` knows
        return None
    if store.exists(CHECKPOINT_RECORD):
        return {"kind": "checkpoint", **_checkpoint(store, "")}
    steps = [name for name in store.folders("") if name.startswith(_STEP)]
    if not steps and not store.exists(_METRICS):
        return None
    return {"kind": "training run", **_run(store, steps)}


def render_training(found: Mapping[str, Any]) -> str:
    """Return a description as text."""
    return "\n".join(_lines(found))


def _run(store: Store, steps: Sequence[str]) -> dict[str, Any]:
    complete = [name for name in steps if store.exists(f"{name}/{CHECKPOINT_RECORD}")]
    exported = "export/tokenmill.json"
    return {
        "checkpoints": [int(name.removeprefix(_STEP)) for name in complete],
        "unfinished": [name for name in steps if name not in complete],
        "exported_step": _json(store, exported).get("step") if store.exists(exported) else None,
        **({"start_from": _json(store, _START).get("start_from")} if store.exists(_START) else {}),
        **({"newest": _checkpoint(store, complete[-1])} if complete else {}),
        **_losses(store, None),
    }


def _checkpoint(store: Store, folder: str) -> dict[str, Any]:
    record = _json(store, _at(folder, CHECKPOINT_RECORD))
    if not isinstance(record.get("step"), int):
        raise ManifestError(f"{_at(folder, CHECKPOINT_RECORD)}: not a checkpoint record (no step)")
    loader, model, settings = (record.get(part) or {} for part in ("loader", "model", "settings"))
    sizes = {file.path.rsplit("/", 1)[-1]: file.size for file in store.files(folder)}
    files: dict[str, int] = {entry["name"]: entry["bytes"] for entry in record.get("files", [])}
    with_digests = sum(files.values()) <= _DIGESTS_UPTO_BYTES
    findings = Findings()
    examine_checkpoint(store, folder, sizes, findings, deep=with_digests)
    shapes = _shapes(store, [name if "://" in name else _at(folder, name) for name in files])
    return {
        "step": record["step"],
        "plan": loader.get("plan_id"),
        "loader": {name: value for name, value in loader.items() if name != "plan_id"},
        "model": {name: model[name] for name in _SIZES if name in model},
        "parameters": sum(prod(shape) for tensor, shape in shapes.items() if tensor.endswith("/weight")),
        "tensors": len(shapes),
        "bytes": sum(files.values()),
        "files": files,
        "digests": "compared" if with_digests else "not compared: tokenmill verify --deep reads every byte",
        "faults": [str(fault) for fault in findings.faults],
        "settings": {name: settings[name] for name in _SETTINGS if name in settings},
        **({"guard": record["guard"]} if record.get("guard") else {}),
    }


def _shapes(store: Store, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Collect what all files hold; of damaged ones the faults tell."""
    found: dict[str, tuple[int, ...]] = {}
    for name in names:
        with suppress(ManifestError, StorageError):
            found |= tensor_shapes(store, name)
    return found


def _losses(store: Store, step: int | None) -> dict[str, Any]:
    """Sum up a run's rows, up to a step if one is given: some of them, and what they cost together."""
    rows = _rows(store, _METRICS, step)
    if not rows:
        return {}
    seconds = sum(row.get("step_s", 0.0) for row in rows)
    every = -(-len(rows) // _LOSSES)
    return {
        "steps_logged": len(rows),
        "ids_read": sum(row.get("tokens", 0) for row in rows),
        "hours": seconds / 3600,
        "data_wait": sum(row.get("data_wait_s", 0.0) for row in rows) / seconds if seconds else None,
        "unreadable": sum(row.get("unreadable", 0) for row in rows),
        "losses": [
            {name: row[name] for name in _COLUMNS if row.get(name) is not None} for row in reversed(rows[::-every])
        ],
        **({"evaluation": evaluations[-1]} if (evaluations := _rows(store, "evaluation.jsonl", step)) else {}),
        **({"guarded": len(guarded)} if (guarded := _rows(store, "guard.jsonl", step)) else {}),
    }


def _rows(store: Store, name: str, step: int | None) -> list[dict[str, Any]]:
    """Read a file of rows, up to a step if one is given; a last line that a kill cut off is passed over."""
    if not store.exists(name):
        return []
    *lines, _torn = store.read_bytes(name).decode("utf-8", "replace").split("\n")
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if step is None or row["step"] <= step]


def _json(store: Store, name: str) -> dict[str, Any]:
    try:
        value = json.loads(store.read_bytes(name))
    except ValueError as error:
        raise ManifestError(f"{name}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ManifestError(f"{name}: not a record")
    return value


def _at(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"{found['kind']} {found.get('path', '')}".rstrip()
    if found["kind"] == "checkpoint":
        yield from _checkpoint_lines(found)
    else:
        steps = ", ".join(f"{step:,}" for step in found["checkpoints"]) or "none"
        yield f"checkpoints  {steps}" + (f"; unfinished: {', '.join(found['unfinished'])}" * bool(found["unfinished"]))
        exported = found["exported_step"]
        yield "exported     " + ("nothing yet" if exported is None else f"step {exported:,}")
        if "start_from" in found:
            yield f"start_from   {found['start_from']}"
        if "newest" in found:
            yield from _checkpoint_lines(found["newest"])
    if "losses" in found:
        yield from _loss_lines(found)


def _checkpoint_lines(found: Mapping[str, Any]) -> Iterator[str]:
    pairs = {
        "plan": str(found["plan"])[:16] + "  " + _pairs(found["loader"]),
        "model": _pairs(found["model"]),
        "parameters": f"{found['parameters']:,}",
        "size": f"{found['bytes'] / 2**20:,.1f} MiB in {len(found['files'])} files, {found['tensors']:,} tensors",
        "settings": _pairs(found["settings"]),
        "digests": found["digests"],
        "faults": "; ".join(found["faults"]) or "none",
        **({"guard": json.dumps(found["guard"])} if "guard" in found else {}),
    }
    yield f"step         {found['step']:,}"
    yield from (f"{name:<12} {told}" for name, told in pairs.items())


def _loss_lines(found: Mapping[str, Any]) -> Iterator[str]:
    waited = "" if found["data_wait"] is None else f", {100 * found['data_wait']:.1f} % of it waiting for data"
    yield (
        f"so far       {found['steps_logged']:,} steps, {found['ids_read']:,} ids, {found['hours']:,.2f} hours{waited};"
        f" {found['unreadable']:,} samples unreadable"
    )
    if "guarded" in found:
        yield f"guard        has acted {found['guarded']:,} times (guard.jsonl)"
    if "evaluation" in found:
        yield f"evaluation   {json.dumps(found['evaluation'])}"
    columns = [name for name in _COLUMNS if any(name in row for row in found["losses"])]
    yield "  ".join(f"{name:>12}" for name in columns)
    for row in found["losses"]:
        yield "  ".join(f"{_cell(row.get(name)):>12}" for name in columns)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"


def _pairs(values: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {value}" for name, value in values.items())
