"""What `verify` finds: faults, which end it with exit code 1, and notes, which do not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is not as it was written: the file, what is wrong with it, what to do."""

    path: str
    what: str
    hint: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}; {self.hint}"


@dataclass(frozen=True, slots=True)
class Note:
    """Something a person may want to know and that harms nobody, such as a file that no record names."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass(slots=True, kw_only=True)
class Findings:
    """Everything one verification found, and how much it looked at."""

    faults: list[Fault] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    folders: int = 0
    records: int = 0
    files: int = 0
    bytes: int = 0

    def add(self, faults: Iterable[Fault]) -> None:
        self.faults.extend(faults)

    def note(self, path: str, what: str) -> None:
        self.notes.append(Note(path, what))


RERUN = "remove it and run the stage again"
RERUN_RECORD = "remove its commit record and run the stage again"
FEWEST_TOLD = 5  # faults of one file that are told one by one


def shortened(faults: list[Fault], path: str) -> list[Fault]:
    """Keep the first faults of a file and count the others: a shifted archive has one for each of its samples."""
    if len(faults) <= FEWEST_TOLD:
        return faults
    more = Fault(path, f"and {len(faults) - FEWEST_TOLD} more faults in this file", RERUN_RECORD)
    return [*faults[:FEWEST_TOLD], more]
