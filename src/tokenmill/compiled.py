"""Functions compiled by numba: a typed door to it, so that every room stays under strict types.

Whoever imports this module pays for numba (0.4 s); the first call of a function costs a second more. Compiled code is
kept beside the source, or below the home folder where that is read-only, or not at all where both are: then every
process compiles again.

Numba takes kept code for fresh as long as the function's own file is the same. Constants and called functions of other
files are part of it, too: with one of them changed it would go on to read the wrong columns. So the name under which
code is kept has a digest of all it is made from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, TypeVar, cast

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile a function on numbers and arrays at its first call; it runs without the interpreter's lock."""
    function.__qualname__ += f"-{_digest(cast(FunctionType, function))}"
    try:
        return cast(Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # "no locator available": no folder to keep compiled code in
        return cast(Function, numba.njit(nogil=True)(function))


def _digest(function: FunctionType) -> str:
    """Give eight digits of a function's code, and of the constants and compiled functions that it names."""
    code = function.__code__
    constants = [value for value in code.co_consts if not isinstance(value, CodeType)]
    used = [(name, _content(function.__globals__.get(name))) for name in code.co_names]
    return hashlib.sha256(repr((code.co_code, constants, used)).encode()).hexdigest()[:8]


def _content(value: Any) -> str:
    """Tell what compiled code has of a global: a compiled function goes by its name, which has its own digest."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {value.tobytes()!r}"
    if isinstance(value, (bool, int, float, str, tuple)):
        return repr(value)
    inner = getattr(value, "py_func", None)
    return str(inner.__qualname__) if isinstance(inner, FunctionType) else ""
