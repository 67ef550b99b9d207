"""How close the stage tokenize comes to its cores: wall time against the CPU-seconds of all its phases over the cores.

The stage runs as it does in a recipe, over pictures (JPEGs of some sizes, resized to `--side-px` squared pixels) and
clips, with the tokenizer that ships (`scenes`), in this process and on Ray. A worker's first unit loads the model on
one thread (8 s of imports), so figures are given with it and without: `steady` are the units behind it. On a machine
that others use as well the wall time is mostly theirs; `ready` (of the run in this process) is what the ratio hangs on
there: how many threads were ready to run, at most as many as cores, over the cores. 1 / ready is the ratio to expect
on a quiet machine.

    python -m benchmarks.tokenize_stage --json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokenmill.demo.clip_folder import encode_mp4
from tokenmill.demo.scenes import captions, motion, render, render_motion, scene
from tokenmill.manifests.archive import ArchiveWriter
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.execution_threads import available_cpus
from tokenmill.recipe import check_recipe

_SIZES = ((640, 480), (480, 640), (640, 640), (800, 450), (512, 384))
_UNIT_ROWS, _UNIT_CLIPS = 100, 8
Row = dict[str, Any]


def write_pictures(folder: Path, number: int) -> None:
    folder.mkdir(parents=True)
    for shard, first in enumerate(range(0, number, _UNIT_ROWS)):
        with ArchiveWriter(folder / f"{shard:05d}.tar") as writer:
            for seed in range(first, min(first + _UNIT_ROWS, number)):
                stream = BytesIO()
                Image.fromarray(render(scene(seed), 256)).resize(_SIZES[seed % len(_SIZES)]).save(stream, "JPEG")
                writer.add(f"{seed:09d}", {"jpg": stream.getvalue(), "txt": captions(scene(seed))[0].encode()})


def write_clips(folder: Path, number: int) -> None:
    folder.mkdir(parents=True)
    for seed in range(number):
        frames = render_motion(motion(seed), 48, 240)
        encode_mp4(folder / f"{seed:05d}.mp4", np.concatenate([frames, frames[::-1]] * 2), 24)
    rows = [{"file": f"{seed:05d}.mp4", "caption": captions(motion(seed))[0]} for seed in range(number)]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe(folder: Path, source: str, options: argparse.Namespace, executor: str) -> dict[str, Any]:
    kinds = {"pictures": "webdataset", "clips": "videos"}
    pool = {"workers": options.workers} if executor == "ray" else {}
    modality = "image" if source == "pictures" else "video"
    scenes = {"scenes": {"min_seconds": 1, "max_seconds": 4}} if modality == "video" else {}
    rows = _UNIT_ROWS if modality == "image" else _UNIT_CLIPS
    area = options.side_px**2
    return {
        "root": str(folder / f"root-{executor}"),
        "execution": {"executor": "inline", "workers": 1, "unit_rows": rows, **pool, "pools": {}},
        "sources": {source: {"kind": kinds[source], "url": str(folder / source)}},
        "filter": {modality: {"scorers": {}, "rules": {}, **scenes}},
        "tokenize": {
            "vocabulary": {"name": "bytes", "codebook_size": 2048},
            "vision": {"name": "scenes"},
            "image": {"min_area": area // 2, "max_area": area},
            "video": {"min_area": area // 8, "max_area": area // 4, "fps": 24, "long": "lower_fps", "max_ids": 100_000},
        },
    }


def run(folder: Path, source: str, options: argparse.Namespace, executor: str) -> Row:
    """Run the stage once over everything, the stages before it beforehand and in this process."""
    value = recipe(folder, source, options, executor)
    before = Chain(recipe=check_recipe(value, "benchmark"), options=ChainOptions(quiet=True))
    assert before.selected
    assert before.choose is not None
    value["execution"]["executor"] = executor
    chain = Chain(recipe=check_recipe(value, "benchmark"), options=ChainOptions(quiet=True))
    started = time.perf_counter()
    with Ready() as ready:
        (snapshot,) = chain.tokenize.values()
    wall_s = time.perf_counter() - started
    workers = options.workers if executor == "ray" else 1
    cores = workers if executor == "ray" else available_cpus()
    return {
        "source": source,
        "executor": executor,
        "workers": workers,
        **figures(snapshot, wall_s, cores),
        **ready.told(snapshot, executor),
    }


class Ready:
    """Looks fifty times a second how many threads of this process and its children run or want to."""

    def __enter__(self) -> Ready:
        self._found: list[tuple[float, int]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def told(self, snapshot: Snapshot, executor: str) -> Row:
        """Return the share of the cores that was asked for while the steady units were at work."""
        begun = sorted(row["started"] for row in logged(snapshot))[1:]
        some = [number for at, number in self._found if begun and at >= begun[0]]
        return {"ready": round(sum(some) / len(some) / available_cpus(), 3)} if some and executor == "inline" else {}

    def _watch(self) -> None:
        me = threading.get_native_id()
        while not self._over.wait(0.02):
            number = sum(_runs(task) for pid in _family() for task in Path(f"/proc/{pid}/task").iterdir()
                         if task.name != str(me))  # fmt: skip
            self._found.append((time.time(), min(number, available_cpus())))


def _family() -> list[int]:
    found = [os.getpid()]
    for thread in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, thread.read_text().split())
    return found


def _runs(task: Path) -> bool:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    except OSError:  # ended just now
        return False


def figures(snapshot: Snapshot, wall_s: float, cores: int) -> Row:
    """Return what the run's own log says of it."""
    units = sorted(logged(snapshot), key=lambda row: row["started"])
    seen: set[str] = set()
    later = [row for row in units if row["worker"] in seen or seen.add(row["worker"])]  # type: ignore[func-returns-value]
    return {
        "kept": snapshot.counts.kept,
        "failed": sum(snapshot.counts.failed.values()),
        "codes": snapshot.totals["codes"],
        "digest": snapshot.digest[:16],
        "wall_s": round(wall_s, 2),
        "whole": against_ideal(units, cores),
        "steady": against_ideal(later, cores),
    }


def logged(snapshot: Snapshot) -> Iterator[Row]:
    store, folder = snapshot.folder.store, snapshot.folder
    for name in store.names(folder.at("logs")):
        rows = map(json.loads, store.read_bytes(name).splitlines())
        yield from (row for row in rows if row["kind"] == "unit")


def against_ideal(units: Sequence[Mapping[str, Any]], cores: int) -> Row:
    """Compare the time from the first of some units to the last with their CPU-seconds over the cores."""
    if not units:
        return {}
    wall_s = max(row["started"] + row["wall_s"] for row in units) - min(row["started"] for row in units)
    cpu_s = sum(row["cpu_s"] for row in units)
    phases: Counter[str] = Counter()
    for row in units:
        phases.update(row["phases_s"])
    return {
        "units": len(units), "wall_s": round(wall_s, 2), "cpu_s": round(cpu_s, 2), "cores": cores,
        "ratio": round(wall_s / (cpu_s / cores), 3), "phases_s": {name: round(s, 2) for name, s in phases.items()},
    }  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--side-px", type=int, default=256, help="root of a picture's area; a clip's is half of it")
    parser.add_argument("--workers", type=int, default=2, help="of Ray")
    parser.add_argument("--executors", nargs="+", default=["inline", "ray"], choices=["inline", "ray"])
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_pictures(folder / "pictures", options.pictures)
        write_clips(folder / "clips", options.clips)
        sources = [name for name in ("pictures", "clips") if getattr(options, name)]
        rows = [run(folder, source, options, executor) for executor in options.executors for source in sources]
    for row in rows:
        print(json.dumps(row) if options.json else "  ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
