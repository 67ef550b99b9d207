"""One peer in a process and an environment of its own: it goes through an epoch whenever it is told to.

    python -m benchmarks.loader_peers.serve MODULE FOLDER

A line of JSON in ({"write": true} or {"setting", "workers", "way"}), a line of JSON out. Staying alive between epochs,
with its workers, it is measured warm, in turn with all the others.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import time
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.loader_peers.delivery import Epoch, alone, through_workers


class Peer:
    def __init__(self, module: str, folder: Path) -> None:
        self.module: Any = importlib.import_module(f"benchmarks.loader_peers.{module}")
        self.folder = folder
        self.epoch = lru_cache(maxsize=2)(self._epoch)  # one with workers, one without; the others' workers end

    def answer(self, ask: dict[str, Any]) -> dict[str, Any]:
        if ask.get("write"):
            try:
                found = version(self.module.DISTRIBUTION)
            except PackageNotFoundError:
                return {"missing": f"{self.module.DISTRIBUTION} is not installed beside {sys.executable}"}
            shutil.rmtree(self.folder, ignore_errors=True)
            self.module.write(self.folder.parent / "source", self.folder)
            return {"version": found, "settings": list(self.module.SETTINGS)}
        epoch = self.epoch(ask["setting"], ask["workers"], ask["way"])
        if ask.get("check"):
            return checked(epoch)
        started, cpu_started = time.perf_counter(), time.process_time()
        tokens = epoch.tokens()
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started  # without the workers'
        return {"tokens_per_s": tokens / seconds, "tokens_per_cpu_s": tokens / cpu_s}

    def _epoch(self, setting: str, workers: int, way: str) -> Epoch:
        if hasattr(self.module, "open_epoch"):
            opened: Epoch = self.module.open_epoch(self.folder, setting, workers, way)
            return opened
        samples = self.module.open_samples(self.folder, setting)
        return through_workers(samples, way, workers) if workers else alone(samples)


def checked(epoch: Epoch) -> dict[str, Any]:
    """Sum up an epoch, so that everybody can be seen to deliver the same."""
    tokens = ids = weight = 0
    for pack in epoch.packs():
        used = int(pack["num_tokens"])
        tokens += used
        ids += int(pack["input_ids"][:used].sum())
        weight += float(pack["loss_weight"].sum())
    return {"tokens": tokens, "ids": ids, "weight": round(weight)}


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    peer = Peer(sys.argv[1], Path(sys.argv[2]))
    for line in sys.stdin:
        try:
            answer = peer.answer(json.loads(line))
        except Exception as error:  # the benchmark names who failed, and goes on
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
