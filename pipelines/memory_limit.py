"""A limit to how far a process may grow, and whether a failure was its doing.

FFmpeg reports some failed allocations as broken data, so whoever gets that asks how near to the limit the process came.
"""

from __future__ import annotations

import resource
from pathlib import Path

_SLACK_BYTES = 16 << 20


class MemoryLimit:
    """Lets the address space grow by `more_bytes` from now on and no further; 0 sets no limit."""

    def __init__(self, more_bytes: int) -> None:
        self._limit_bytes = 0
        if more_bytes:
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            limit = _address_space("VmSize") + more_bytes
            self._limit_bytes = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(resource.RLIMIT_AS, (self._limit_bytes, hard))

    def would_refuse(self, block_bytes: int) -> bool:
        """Tell whether at its largest the process had no room for one more block."""
        if not self._limit_bytes:
            return False
        return _address_space("VmPeak") + block_bytes + _SLACK_BYTES > self._limit_bytes


def _address_space(name: str) -> int:
    """Return a figure of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
