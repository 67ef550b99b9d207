"""The list of machines of a training run, as DeepSpeed and mpirun write it: a line a machine, `HOST [slots=N]`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tokenmill.errors import RecipeError

_LINE = re.compile(r"(?P<host>[A-Za-z0-9_\[][A-Za-z0-9_.@:\[\]-]*)(\s+slots\s*=\s*(?P<slots>[1-9][0-9]*))?")


@dataclass(frozen=True, slots=True)
class Hosts:
    """The machines in the order of their ranks, and how many ranks each gets; None = as the recipe says."""

    names: tuple[str, ...]
    ranks: int | None

    @property
    def address(self) -> str:
        """Where the others find the first: its name without a user."""
        return self.names[0].rpartition("@")[2]


def read_hostfile(path: str | Path) -> Hosts:
    """Read a hostfile; raises RecipeError that names the line.

    Every machine has the same number of slots: ranks are `train.ranks` a machine.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"--hostfile: cannot read {path}: {error}") from error
    found: list[tuple[str, int | None]] = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise RecipeError(f"--hostfile: {path}:{number}: expected HOST or HOST slots=N, found {text!r}")
        found.append((match["host"], int(match["slots"]) if match["slots"] else None))
    return _checked(found, path)


def _checked(found: list[tuple[str, int | None]], path: str | Path) -> Hosts:
    if not found:
        raise RecipeError(f"--hostfile: {path} names no machine")
    repeated = [name for name, times in Counter(name for name, _ in found).items() if times > 1]
    if repeated:
        raise RecipeError(f"--hostfile: {path} names {repeated[0]} more than once")
    slots = dict(found)
    if len(set(slots.values())) > 1:
        told = ", ".join(f"{name} {count or 'none'}" for name, count in slots.items())
        raise RecipeError(f"--hostfile: {path}: machines have different slots ({told}); ranks are as many on each")
    return Hosts(tuple(slots), found[0][1])
