"""Which units did not end well, on disk, so that a later run and `status` know of them.

`failures/<unit>.json` beside the records: how often the unit was handed out in vain, in all runs, and why at last.
Written only when a try is lost, removed when the unit is committed; no digest covers it. A unit that is known here is
handed out last, so a poison one costs nobody else's time.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from tokenmill.errors import StorageError
from tokenmill.manifests.stagedir import StageDir

_FOLDER = "failures"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A unit's lost tries: how many, and the last one's reason."""

    unit: str
    tries: int
    error: str


def read_failures(folder: StageDir) -> dict[str, Failure]:
    """Return unit → its failure; unreadable ones count as one try."""
    found = {}
    for entry in folder.store.files(folder.at(_FOLDER)):
        unit = entry.path.rsplit("/", 1)[-1].removesuffix(".json")
        try:
            value = json.loads(folder.store.read_bytes(entry.path))
            found[unit] = Failure(unit=unit, tries=int(value["tries"]), error=str(value["error"]))
        except (StorageError, ValueError, KeyError, TypeError):
            found[unit] = Failure(unit=unit, tries=1, error="unknown")
    return found


def write_failure(folder: StageDir, failure: Failure) -> None:
    """Leave a failure, replacing what was known of the unit."""
    value = {"unit": failure.unit, "tries": failure.tries, "error": failure.error, "at": round(time.time(), 3)}
    folder.store.put(folder.at(f"{_FOLDER}/{failure.unit}.json"), (json.dumps(value, indent=1) + "\n").encode())


def forget_failure(folder: StageDir, unit: str) -> None:
    """Remove what was known: the unit is committed."""
    folder.store.delete_many([folder.at(f"{_FOLDER}/{unit}.json")])  # another run may have done so
