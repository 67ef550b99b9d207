"""`tokenmill index-tokens`: an index for token shards of others, without a recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tokenmill.errors import RecipeError


def index_shards(
    url: str,
    root: str,
    source: str,
    vocabulary: str,
    vision: str | None,
    settings: Sequence[str],
    storage: Mapping[str, Any],
    *,
    quiet: bool = False,
) -> dict[str, Any]:
    """Index the .tar files below a URL under a root, resuming; returns counts, reasons, folder and snapshot.

    `vocabulary` and `vision` are YAML, `settings` are `key=YAML` of a source of kind `tokens`. Raises RecipeError for
    what cannot be understood, and where no archive lies.
    """
    from tokenmill.manifests.storage import open_store
    from tokenmill.pipelines.dispatch import RunOptions
    from tokenmill.pipelines.foreign_tokens import index_work
    from tokenmill.pipelines.recipe_sections import absolute, parse_token_shards
    from tokenmill.pipelines.runner import run_stage

    if not re.fullmatch(r"[A-Za-z0-9_-]+", source):
        raise RecipeError(f"--source {source!r}: letters, digits, - and _ only")
    section = {"kind": "tokens", "url": url} | dict(_setting(text) for text in settings)
    shards = parse_token_shards(source, absolute(section))
    told = _mapping("--vision", vision) if vision is not None else None
    work = index_work(open_store(root, storage), source, shards, _mapping("--vocabulary", vocabulary), told)
    ((snapshot,),) = run_stage("tokenize", [work], RunOptions(quiet=quiet))
    counts = snapshot.counts.to_json()
    return {
        "source": source,
        "folder": snapshot.folder.path,
        "snapshot": snapshot.digest,
        "archives": len(snapshot.commits),
        **{name: counts[name] for name in ("in", "kept", "failed")},
        **snapshot.totals,
    }


def render_index(found: Mapping[str, Any]) -> str:
    """Return what was indexed as text."""
    lines = [
        f"{found['source']}: {found['archives']:,} archives, {found['in']:,} samples, {found['kept']:,} usable; "
        f"{found['codes']:,} codes, {found['text_ids']:,} text ids",
        *(f"  failed {reason}: {number:,}" for reason, number in found["failed"].items()),
        f"index: {found['folder']}, snapshot {found['snapshot'][:16]}",
    ]
    return "\n".join(lines)


def _mapping(option: str, text: str) -> dict[str, Any]:
    value = _yaml(option, text)
    if not isinstance(value, dict):
        raise RecipeError(f"{option} {text!r}: not a mapping such as '{{name: bytes, codebook_size: 2048}}'")
    return value


def _setting(text: str) -> tuple[str, Any]:
    name, is_there, value = text.partition("=")
    if not is_there:
        raise RecipeError(f"--set {text}: not of the form KEY=VALUE")
    return name, _yaml(f"--set {name}", value)


def _yaml(option: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{option} {text!r}: not YAML ({' '.join(str(error).split())})") from error
