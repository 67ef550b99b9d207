"""Data-Juicer's share of `curate.py`, run by the Python of an environment of its own; prints CPU-seconds as JSON.

python curate_data_juicer.py LIST_OF_PICTURES
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from data_juicer.core.data import NestedDataset  # type: ignore[import-not-found]
from data_juicer.ops.deduplicator import ImageDeduplicator  # type: ignore[import-not-found]
from data_juicer.ops.filter import (  # type: ignore[import-not-found]
    ImageAspectRatioFilter,
    ImageShapeFilter,
    ImageSizeFilter,
)

paths = Path(sys.argv[1]).read_text().splitlines()
operators = [
    ImageShapeFilter(min_width=1, min_height=1, num_proc=1),
    ImageAspectRatioFilter(min_ratio=0.01, max_ratio=100, num_proc=1),
    ImageSizeFilter(min_size="0.01KB", max_size="1GB", num_proc=1),
    ImageDeduplicator(method="phash", num_proc=1),
]


def cpu_s() -> float:
    """Return the CPU-seconds of this process and of those it started and waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def run(some: list[str]) -> float:
    """Run the operators one after the other, as its executor does; return CPU-seconds."""
    data = NestedDataset.from_list([{"text": "", "images": [path]} for path in some])
    before = cpu_s()
    for operator in operators:
        data = operator.run(data)
    return cpu_s() - before


run(paths[:2])  # imports and first calls
print(json.dumps({"pictures": len(paths), "cpu_s": run(paths)}))
