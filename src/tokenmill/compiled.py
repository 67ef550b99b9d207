"""Functions compiled by numba: a typed door to it, so that every room stays under strict types.

Whoever imports this module pays for numba (0.4 s); the first call of a function costs a second more. Compiled code is
kept beside the source, or below the home folder where that is read-only, or not at all where both are: then every
process compiles again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile a function on numbers and arrays at its first call; it runs without the interpreter's lock."""
    try:
        return cast(Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # "no locator available": no folder to keep compiled code in
        return cast(Function, numba.njit(nogil=True)(function))
