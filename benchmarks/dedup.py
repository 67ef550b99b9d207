"""What does it cost to find near copies, and are all of them found?

    python benchmarks/dedup.py [--hashes N] [--vectors N] [--texts N] [--sample N] [--threads N] [--json]

Rows are made: `hashes` are 64-bit perceptual hashes of which a fifth are near copies, among them clusters of 10,000
to 100,000 copies around one centre; `vectors` are embeddings in topics, a fifth near copies; `texts` are MinHash
signatures, a fifth near copies. `segments` is the form for what does not fit into memory, one thread, and has to give
what memory gives. Each step runs in a process of its own, whose seconds (compiling excluded) and peak memory are taken.

Recall is measured against comparing a sample of rows with *all* kept ones: a kept row of the sample that is near a
better kept row was missed. For hashes the leader itself is compared. `billion` is an extrapolation: the measured cost
of comparing one segment with another and of settling one, times how often 10^9 hashes need that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.filters.near_hashes import HashNeighbours, hash_leaders
from tokenmill.filters.near_texts import text_leaders
from tokenmill.filters.near_vectors import vector_leaders
from tokenmill.filters.stars import star_leaders
from tokenmill.filters.text_bands import agreeing, choose_banding

MAX_DISTANCE = 4
CLUSTERS = (10_000, 10_000, 20_000, 50_000, 100_000)
MIN_COSINE = 0.95
AXES = 64
MIN_JACCARD = 0.8
PERMUTATIONS = 128
BILLION = 10**9
BILLION_SEGMENT = 1 << 25

Near = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.bool_]]  # a row, kept rows -> which are near


def made_hashes(count: int) -> NDArray[np.uint64]:
    """Return hashes in random order, a fifth of them within `MAX_DISTANCE` of others."""
    generator = np.random.default_rng(0)
    originals = generator.integers(0, 2**64, count - count // 5, dtype=np.uint64)
    sizes = [size for size in CLUSTERS if size <= count // 50]
    copies = [_flipped(np.repeat(originals[number], size), generator) for number, size in enumerate(sizes)]
    of = generator.integers(0, len(originals), count // 5 - sum(sizes))
    hashes = np.concatenate([originals, _flipped(originals[of], generator), *copies])
    generator.shuffle(hashes)
    return hashes


def _flipped(hashes: NDArray[np.uint64], generator: np.random.Generator) -> NDArray[np.uint64]:
    for _ in range(MAX_DISTANCE):
        hashes = hashes ^ (np.uint64(1) << generator.integers(0, 64, len(hashes), dtype=np.uint64))
    return hashes


def made_vectors(count: int) -> NDArray[np.float16]:
    """Return vectors in 1,000 topics; a fifth lie at a cosine of some 0.9 to 1 to others."""
    generator = np.random.default_rng(0)
    topics = generator.normal(size=(1000, AXES)).astype(np.float32)
    originals = topics[generator.integers(0, 1000, count - count // 5)]
    originals += generator.normal(size=originals.shape).astype(np.float32)
    copies = originals[generator.integers(0, len(originals), count // 5)]
    spread = generator.uniform(0.02, 0.5, (len(copies), 1)).astype(np.float32)
    copies += spread * np.sqrt(2) * generator.normal(size=copies.shape).astype(np.float32)
    vectors = np.concatenate([originals, copies]).astype(np.float16)
    generator.shuffle(vectors)
    return vectors


def made_signatures(count: int) -> NDArray[np.uint32]:
    """Return signatures; a fifth agree with others in 60 to 100 % of the permutations."""
    generator = np.random.default_rng(0)
    signatures = generator.integers(0, 2**32, (count, PERMUTATIONS), dtype=np.uint32)
    copies = np.arange(count - count // 5, count)
    for row, of in zip(copies, generator.integers(0, copies[0], len(copies)), strict=True):
        same = generator.random(PERMUTATIONS) >= generator.uniform(0, 0.4)
        signatures[row, same] = signatures[of, same]
    generator.shuffle(signatures)
    return signatures


def hashes_step(count: int, sample: int, threads: int) -> dict[str, Any]:
    """Hashes in memory, each sampled row's leader against brute force."""
    hashes = made_hashes(count)
    hash_leaders(hashes[:5000], max_distance=MAX_DISTANCE)
    leaders, cost = _timed(lambda: hash_leaders(hashes, max_distance=MAX_DISTANCE, threads=threads))
    kept = np.flatnonzero(leaders == np.arange(count))
    kept_hashes = hashes[kept]
    rows = _sample(leaders, sample)
    wrong = 0
    for row in rows:
        near = np.bitwise_count(kept_hashes[: np.searchsorted(kept, row)] ^ hashes[row]) <= MAX_DISTANCE
        expected = kept[near.argmax()] if near.any() else row
        wrong += int(leaders[row] != expected)
    distances = np.bitwise_count(hashes ^ hashes[leaders])
    return _figures(leaders, cost) | {
        "max_distance": MAX_DISTANCE,
        "clusters": [size for size in CLUSTERS if size <= count // 50],
        "sample": len(rows),
        "recall_on_sample": 1 - wrong / len(rows),
        "false_drops": int(np.count_nonzero(distances > MAX_DISTANCE)),
    }


def segments_step(count: int, sample: int, threads: int) -> dict[str, Any]:
    """A fifth of the hashes in five segments on disk, and what the parts of that cost."""
    hashes = made_hashes(count)[: count // 5]
    hash_leaders(hashes[:5000], max_distance=MAX_DISTANCE)
    rows = -(-len(hashes) // 5)
    with tempfile.TemporaryDirectory(prefix="tokenmill-dedup-") as folder:
        leaders, cost = _timed(
            lambda: hash_leaders(hashes, max_distance=MAX_DISTANCE, workspace=Path(folder) / "parts", rows_at_once=rows)
        )
        same = np.array_equal(leaders, hash_leaders(hashes, max_distance=MAX_DISTANCE, threads=threads))
    return _figures(leaders, cost) | {"rows_at_once": rows, "same_as_in_memory": same}


def billion_step(count: int, sample: int, threads: int) -> dict[str, Any]:
    """Extrapolate to 10^9 hashes from one settled segment and one comparison of two."""
    hashes = made_hashes(count)
    rows = min(count // 2, 1 << 22)
    neighbours = HashNeighbours(hashes[: 2 * rows], max_distance=MAX_DISTANCE)
    neighbours.first(np.arange(rows, rows + 5000), np.arange(5000))
    leaders, settling = _timed(lambda: star_leaders(HashNeighbours(hashes[:rows], max_distance=MAX_DISTANCE), rows))
    kept = np.flatnonzero(leaders == np.arange(rows))
    _, comparing = _timed(lambda: neighbours.first(np.arange(rows, 2 * rows), kept))
    scale, segments = BILLION_SEGMENT / rows, -(-BILLION // BILLION_SEGMENT)
    comparisons = segments * (segments - 1) // 2
    settle_s, compare_s = settling["cpu_s"] * scale, comparing["cpu_s"] * scale
    return {
        "extrapolated": True,
        "measured_rows": rows,
        "measured_settle_cpu_s": settling["cpu_s"],
        "measured_compare_cpu_s": comparing["cpu_s"],
        "rows": BILLION,
        "rows_at_once": BILLION_SEGMENT,
        "segments": segments,
        "comparisons": comparisons,
        "core_hours": round((segments * settle_s + comparisons * compare_s) / 3600, 1),
        "hours_with_cores_without_end": round(segments * (settle_s + compare_s) / 3600, 2),
        "gb_on_disk": round(BILLION * (8 + 0.8 * 16 + 16) / 1e9),  # rows, kept rows with positions, leaders twice
    }


def vectors_step(count: int, sample: int, threads: int) -> dict[str, Any]:
    """Vectors in cells."""
    vectors = made_vectors(count)
    vector_leaders(vectors[:2000], min_cosine=MIN_COSINE)
    leaders, cost = _timed(lambda: vector_leaders(vectors, min_cosine=MIN_COSINE, threads=threads))
    units = vectors.astype(np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    dropped = np.flatnonzero(leaders != np.arange(count))
    cosines = np.einsum("nd,nd->n", units[dropped], units[leaders[dropped]])
    missed = _missed(leaders, 5 * sample, units, lambda row, kept: kept @ row >= MIN_COSINE)
    return _figures(leaders, cost) | missed | {
        "axes": AXES,
        "min_cosine": MIN_COSINE,
        "false_drops": int(np.count_nonzero(cosines < MIN_COSINE - 1e-5)),
    }  # fmt: skip


def texts_step(count: int, sample: int, threads: int) -> dict[str, Any]:
    """MinHash signatures in bands."""
    signatures = made_signatures(count)
    text_leaders(signatures[:2000], min_jaccard=MIN_JACCARD)
    leaders, cost = _timed(lambda: text_leaders(signatures, min_jaccard=MIN_JACCARD, threads=threads))
    least = agreeing(PERMUTATIONS, MIN_JACCARD)
    dropped = np.flatnonzero(leaders != np.arange(count))
    agree = (signatures[dropped] == signatures[leaders[dropped]]).sum(axis=1)
    missed = _missed(leaders, sample // 2, signatures, lambda row, kept: (kept == row).sum(axis=1) >= least)
    return _figures(leaders, cost) | missed | {
        "min_jaccard": MIN_JACCARD,
        "bands": choose_banding(PERMUTATIONS, MIN_JACCARD, 0.01)._asdict(),
        "false_drops": int(np.count_nonzero(agree < least)),
    }  # fmt: skip


STEPS: dict[str, tuple[Callable[[int, int, int], dict[str, Any]], str]] = {
    "hashes": (hashes_step, "hashes"),
    "segments": (segments_step, "hashes"),
    "billion": (billion_step, "hashes"),
    "vectors": (vectors_step, "vectors"),
    "texts": (texts_step, "texts"),
}


def _timed(work: Callable[[], NDArray[np.int64]]) -> tuple[NDArray[np.int64], dict[str, Any]]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    cost = {
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
        "peak_memory_mb": _peak_memory_mb(),
    }
    return found, cost


def _figures(leaders: NDArray[np.int64], cost: dict[str, Any]) -> dict[str, Any]:
    dropped = int(np.count_nonzero(leaders != np.arange(len(leaders))))
    return {"rows": len(leaders), "dropped": dropped} | cost


def _sample(leaders: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return some dropped rows and as many kept ones."""
    generator = np.random.default_rng(1)
    kept = leaders == np.arange(len(leaders))
    groups = [np.flatnonzero(kept), np.flatnonzero(~kept)]
    return np.sort(np.concatenate([generator.choice(group, min(size // 2, len(group)), False) for group in groups]))


def _missed(leaders: NDArray[np.int64], size: int, rows: NDArray[Any], near: Near) -> dict[str, Any]:
    """Estimate from a sample of kept rows how many should have been dropped."""
    kept = np.flatnonzero(leaders == np.arange(len(leaders)))
    kept_rows = rows[kept]
    places = np.random.default_rng(1).choice(len(kept), min(size, len(kept)), replace=False)
    missed = sum(bool(near(kept_rows[place], kept_rows[:place]).any()) for place in places)
    dropped = len(leaders) - len(kept)
    recall = dropped / (dropped + missed / len(places) * len(kept))
    return {"sample": len(places), "missed_in_sample": missed, "recall_on_sample": round(recall, 4)}


def _peak_memory_mb() -> int:
    """Return this process's own peak; `ru_maxrss` would begin with that of the process that started it."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return round(int(line.split()[1]) / 1024)


def _in_child(name: str, options: argparse.Namespace) -> dict[str, Any]:
    count = getattr(options, STEPS[name][1])
    command = [sys.executable, __file__, "--step", name, f"--{STEPS[name][1]}", str(count)]
    command += ["--sample", str(options.sample), "--threads", str(options.threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hashes", type=int, default=10_000_000)
    parser.add_argument("--vectors", type=int, default=200_000)
    parser.add_argument("--texts", type=int, default=500_000)
    parser.add_argument("--sample", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=STEPS, action="append", help="a step; all, if absent")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.step:
        step, rows = STEPS[options.step]
        print(json.dumps(step(getattr(options, rows), options.sample, options.threads)))
        return
    found = {name: _in_child(name, options) for name in options.only or STEPS}
    print(json.dumps({"threads": options.threads, "steps": found}, indent=1) if options.json else _table(found))


def _table(found: dict[str, Any]) -> str:
    lines = []
    for name, row in found.items():
        lines.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in row.items()))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
