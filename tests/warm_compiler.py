"""Imported by the server that test workers are forked from: numba and the kernels are then loaded once, not by each.

A process that loads numba, the loader's kernels and the libraries around them by itself takes 1.5 s of CPU for it. No
thread is started here, as none would survive the fork. Kernels that were never compiled on this machine are not loaded.
"""

from __future__ import annotations

import threading
from types import ModuleType

import numba
import pandas  # noqa: F401  (pyarrow imports it at the first array)
import pyarrow.parquet  # noqa: F401
from numba.core.dispatcher import Dispatcher

from tokenmill.tokenize import layout_kernels
from tokenmill.train import assembly_kernel, assembly_places


@numba.njit
def _add(left: int, right: int) -> int:
    return left + right


def load_kernels(module: ModuleType) -> None:
    """Load what numba keeps on disk of a module's functions."""
    for function in vars(module).values():
        if type(function) is Dispatcher or type(function).__name__ == "CPUDispatcher":
            for signature, *_ in function._cache._cache_file._load_index():
                function.compile(signature)


_add(1, 2)
for kernels in (layout_kernels, assembly_places, assembly_kernel):
    load_kernels(kernels)
assert threading.active_count() == 1
