"""Functions compiled by numba: a typed door to it, so that the rest of the room stays under strict types.

Whoever imports this module pays for numba (0.4 s); the first call of a function costs a second more, once a machine,
since compiled code is kept beside the source. Only the engines that look for near copies are worth that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile a function on numbers and arrays at its first call; it runs without the interpreter's lock."""
    return cast(Function, numba.njit(cache=True, nogil=True)(function))
