"""How an engine asks for parts of its work to be done, without knowing where.

An engine describes its work as one picklable function and many small parts (numbers of files in a shared folder); the
caller decides whether they run here, in threads or as a job on a cluster. Results are small, too: rows go through
files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")


class MapParts(Protocol):
    """Applies a function to parts in any order and any number of processes; raises if one of them fails.

    The function may be applied to a part more than once (a worker died): it writes the same files again.
    """

    def __call__(self, function: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]: ...


def map_in_process(function: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
    """Apply `function` to one part after the other, here."""
    return map(function, parts)
