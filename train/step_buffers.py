"""Memory of steps, used again once nobody holds an array of it any more.

A step of 16 packs at 5,120 ids is 2.3 MB, which the C library gives back to the system and asks for again each time:
528 page faults cost 600 µs where filling the arrays takes 180. Whoever keeps an array keeps its memory, as ever.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray


class StepBuffers:
    """Lends flat stretches of bytes; at most `most` that came back are kept.

    Safe to use from several threads, and from wherever an array is collected: it needs no lock.
    """

    def __init__(self, most: int) -> None:
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=most)
        self._lent: dict[int, tuple[weakref.ref[memoryview], NDArray[np.uint8]]] = {}

    def lend(self, size: int) -> NDArray[np.uint8]:
        """Give at least `size` bytes, undefined; they come back when the last array on them is gone."""
        memory = self._fitting(size)
        array = np.frombuffer(memoryview(memory), np.uint8)  # type: ignore[arg-type]
        view: Any = array.base  # a memoryview of its own, which all arrays cut from this one hold through it
        number = id(view)
        self._lent[number] = weakref.ref(view, lambda _: self._take_back(number)), memory
        return array

    def _fitting(self, size: int) -> NDArray[np.uint8]:
        """Take the memory that came back last, which caches still know; what is of another size is let go."""
        while True:
            try:
                memory = self._free.pop()
            except IndexError:
                return np.empty(size, np.uint8)
            if size <= memory.size <= 2 * size:
                return memory

    def _take_back(self, number: int) -> None:
        self._free.append(self._lent.pop(number)[1])
