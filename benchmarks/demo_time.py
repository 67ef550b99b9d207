"""How long the demo takes, stage by stage, and how much memory it needs at its peak.

    python benchmarks/demo_time.py --json [--out DIR]

Runs `tokenmill demo` in a fresh folder and samples the resident memory of it and all its children, twice a second
(shared pages counted once, as proportional set size, where the kernel tells).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", help="folder of the demo (default: a temporary one)")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(options.out or scratch) / "demo"
        result = measure(out, options.overrides)
    print(json.dumps(result, indent=None if options.json else 1))
    return 0


def measure(out: Path, overrides: list[str]) -> dict[str, Any]:
    """Run the demo and return seconds a stage, in all, and the peak of memory in GiB."""
    command = [sys.executable, "-m", "tokenmill.cli", "demo", "--json", "--out", str(out), *overrides]
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = psutil.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory_of(process))
            time.sleep(0.5)
        output.seek(0)
        if process.returncode:
            raise SystemExit(f"the demo ended with exit code {process.returncode}")
        found = json.loads(output.read())
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "stages": {row["stage"]: row["seconds"] for row in found["stages"]},
        "peak_memory_gib": round(peak / 2**30, 2),
        "cores": psutil.cpu_count(),
    }


def memory_of(process: psutil.Process) -> int:
    """Return the bytes that a process and its children hold."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            found = one.memory_full_info()
            total += getattr(found, "pss", found.rss)
        except psutil.Error:
            continue
    return total


if __name__ == "__main__":
    sys.exit(main())
