"""The process that opens films that are no MP4, to say how long they are: `python -m …film_header_child`.

FFmpeg reads a hostile header here, with 2 GiB of memory at most; it looks at 1 MB of the file and decodes next to
nothing. One film takes 1 to 5 ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenmill.faults import fault_point
from tokenmill.pipelines.line_child_server import serve
from tokenmill.pipelines.memory_limit import MemoryLimit

_MEMORY_BYTES = 2 << 30
_LOOK = {"probesize": "1000000", "analyzeduration": "1000000"}


def seconds_of(question: Mapping[str, Any]) -> dict[str, Any]:
    """Return the duration that a file's container announces, None where it does not."""
    import av

    from tokenmill.pipelines.film_checks import open_container

    fault_point("header:film")
    with open_container(question["path"], is_cut_off=False, **_LOOK) as container:
        length = container.duration
    return {"seconds": length / av.time_base if length and length > 0 else None}


def _prepare() -> bool:
    import tokenmill.pipelines.film_checks  # noqa: F401  slow, and none of the first film's time

    MemoryLimit(_MEMORY_BYTES)
    return True


if __name__ == "__main__":
    serve(seconds_of, _prepare)
