"""The prompt files, result files and rewritten prompts of a benchmark, from wherever they lie."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.benchmarks.benchmark import TextFile


def read_files(path: str, endings: tuple[str, ...], storage: Mapping[str, Any] | None = None) -> list[TextFile]:
    """Read a text file, or those of a folder with some ending, by name; raises RecipeError where there is none."""
    store, names = _listed(path, storage or {})
    if names is None:
        names = [name for name in store.names() if name.endswith(endings) and "/" not in name]
        if not names:
            raise RecipeError(f"{path}: no file ending in {' or '.join(endings)} is there")
    return [TextFile(name=name, text=_text(store, name)) for name in names]


def read_results(paths: Sequence[str], storage: Mapping[str, Any] | None = None) -> list[TextFile]:
    """Read result files, each a path or LABEL=PATH.

    Without a label one beside or below a benchmark's `run.json` is called as the prompt file that was drawn.
    """
    return [_result(path, storage or {}) for path in paths]


def read_rewritten(path: str, storage: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Read JSON Lines of {"prompt", "rewritten"}; raises RecipeError that names the first bad line."""
    found = {}
    for number, line in _lines(read_files(path, (".jsonl",), storage)):
        try:
            row = json.loads(line)
            prompt, rewritten = row["prompt"], row["rewritten"]
        except (ValueError, TypeError, KeyError) as error:
            raise RecipeError(
                f'{path}, line {number}: {{"prompt": …, "rewritten": …}} is wanted ({error!r})'
            ) from error
        if not isinstance(prompt, str) or not isinstance(rewritten, str) or not rewritten.strip():
            raise RecipeError(f"{path}, line {number}: prompt and rewritten are texts, the second not empty")
        found[prompt.strip()] = rewritten.strip()
    return found


def _lines(files: Sequence[TextFile]) -> Iterator[tuple[int, str]]:
    for file in files:
        for number, line in enumerate(file.text.split("\n"), 1):
            if line.strip():
                yield number, line


def _result(path: str, storage: Mapping[str, Any]) -> TextFile:
    label, separator, rest = path.partition("=")
    labelled = bool(separator) and "/" not in label
    place = rest if labelled else path
    store, names = _listed(place, storage)
    if names is None:
        raise RecipeError(f"{place}: no result file is there")
    text = _text(store, names[0])
    return TextFile(name=place, text=text, label=label if labelled else _drawn_from(place, storage))


def _drawn_from(path: str, storage: Mapping[str, Any]) -> str:
    """Return the prompt file that the benchmark folder around a result was drawn from, empty where there is none."""
    folder = path
    for _ in range(3):
        folder = folder.rpartition("/")[0] or "."
        store = open_store(folder, storage)
        if store.exists("run.json"):
            found = json.loads(store.read_bytes("run.json"))
            return str(found.get("prompt_file", "")) if isinstance(found, dict) else ""
    return ""


def _listed(path: str, storage: Mapping[str, Any]) -> tuple[Store, list[str] | None]:
    """Return a store and the one file that is meant, None for a whole folder."""
    store = open_store(path.rstrip("/") or path, storage)
    if not store.exists(""):
        return store, None
    folder, _, name = store.url.rpartition("/")
    return open_store(folder or ("." if not store.url.startswith("/") else "/"), storage), [name]


def _text(store: Store, name: str) -> str:
    try:
        return store.read_bytes(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{store.url}/{name}: is no UTF-8 text ({error.reason} at byte {error.start})") from error
