"""Imported by the server that test workers are forked from: numba is then loaded once and not by each of them."""

from __future__ import annotations

import numba


@numba.njit
def _add(left: int, right: int) -> int:
    return left + right


_add(1, 2)
