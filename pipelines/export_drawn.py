"""What a job drew as loose files in a folder, for people who vote and for judges that want a layout of their own.

Names follow a pattern, such as GenEval's `{number:05d}/samples/{sample:04d}.{extension}`. A file that is there with its
size is left out, so an export that was killed goes on. Beside the files stands `samples.jsonl`: of each one the prompt,
its seed and the row it came from.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.manifests.archive import escape_key
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.drawn import DrawnSample, drawn_samples

INDEX = "samples.jsonl"
PATTERN = "{key}.{extension}"
_FIELDS = ("key", "number", "sample", "prompt_key", "seed", "extension")


@dataclass(kw_only=True)
class DrawnExport:
    """How many files were written, how many were there, and the bytes written."""

    written: int = 0
    there: int = 0
    bytes: int = 0

    def to_json(self) -> dict[str, int]:
        return asdict(self)


def export_drawn(drawn: Snapshot, to: Store, pattern: str = PATTERN) -> DrawnExport:
    """Write every sample of a job into a folder.

    Raises:
        RecipeError: a pattern that names no file, the same one twice, or one outside of the folder.
    """
    named = namer(pattern)
    done, names, lines = DrawnExport(), set[str](), list[str]()
    there = {entry.path: entry.size for entry in to.files()}
    for sample in drawn_samples(drawn):
        name = named(sample)
        if name in names:
            raise RecipeError(f"--names {pattern}: gives {name} twice; use {{number}} and {{sample}}, or {{key}}")
        names.add(name)
        lines.append(json.dumps(_told(sample, name)) + "\n")
        if there.get(name) == len(sample.data):
            done.there += 1
            continue
        to.put(name, sample.data)
        done.written, done.bytes = done.written + 1, done.bytes + len(sample.data)
    to.put(INDEX, "".join(lines).encode())
    return done


def namer(pattern: str) -> Callable[[DrawnSample], str]:
    """Return what names a sample's file; raises RecipeError for a pattern that gives no name inside of a folder."""

    def name(sample: DrawnSample) -> str:
        fields = {field: getattr(sample, field) for field in _FIELDS}
        for field in ("key", "prompt_key"):
            fields[field] = escape_key(fields[field]).replace("/", "%2F")
        try:
            found = pattern.format_map(fields)
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            known = ", ".join(f"{{{field}}}" for field in _FIELDS)
            raise RecipeError(f"--names {pattern}: is no pattern ({error}); allowed: {known}") from error
        if posixpath.isabs(found) or posixpath.normpath(found) != found or found.startswith("..") or found == INDEX:
            raise RecipeError(f"--names {pattern}: {found} is no file of the folder")
        return found

    return name


def _told(sample: DrawnSample, name: str) -> dict[str, Any]:
    return {
        "file": name,
        "prompt": sample.prompt,
        "seed": sample.seed,
        "number": sample.number,
        "sample": sample.sample,
        "prompt_key": sample.prompt_key,
        "row": dict(sample.row),
    }
