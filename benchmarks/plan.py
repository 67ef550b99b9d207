"""How full are packs, how long does packing take, and how alike are the ranks' shares, on lengths like Emu3's?

    python benchmarks/plan.py [--json] [--documents N] [--threads N] [--files N] [--folder PATH]

Lengths by name and seed: `made/plan_lengths.py`. `fill` is that of windows as the plan stage makes them, `supply_bound`
what no packing of them could exceed, `fill_best_fit` the same documents without cutting, best-fit decreasing, texts
beyond the context cut off at it. `time` packs documents from lengths in memory, windows on threads;
`bytes_per_document` is what the process grew by at its peak, lengths included. `files` plans as many documents from
index files, up to the written plan (`made/plan_files.py`; `--folder` keeps the index files for the next run). `balance`
deals steps of 64 packs to 8 ranks: the mean over micro-steps of the costliest rank ÷ the mean rank, beside the same
packs in the plan's order, and beside what no packing goes below in that order: each pack with its longest piece's pairs
alone. A pack costs its ids, and the pairs within its pieces by the share they have in Emu3's 8B.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from bisect import bisect_left, insort
from pathlib import Path
from typing import Any

import numpy as np
from made import plan_files
from made.peak_memory import peak_bytes
from made.plan_lengths import MIXES, Mix, draw, windows
from numpy.typing import NDArray

from tokenmill.pipelines.packing import Packs, pack, pack_windows
from tokenmill.pipelines.packing_bound import fewest_packs
from tokenmill.train.dealing import deal

MIN_PIECE = 16
WINDOWS = 3
GLOBAL_PACKS, WORLD = 64, 8
# layers × hidden ÷ parameters that every id is multiplied with, as train/loop.py counts them (EMU3.md §5)
_LAYER = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
ATTENTION_SHARE = 32 * 4096 / (32 * _LAYER + 4096 * 184_622)


def measure_fill(mix: Mix) -> dict[str, Any]:
    """Pack some windows; and what else could be made of the same documents."""
    size = mix.window_documents
    lengths, cuttable = draw(mix, WINDOWS * size)
    packs = fewest = cut = whole_packs = whole_ids = 0
    for end in windows(lengths.size, size):
        window = slice(end - size, end)
        found = pack(lengths[window], cuttable[window], mix.context, MIN_PIECE)
        packs += len(found)
        cut += int((np.bincount(found.document) > 1).sum())
        fewest += fewest_packs(lengths[window], cuttable[window], mix.context)
        whole = np.minimum(lengths[window], mix.context).tolist()
        whole_packs += _best_fit_packs(whole, mix.context)
        whole_ids += sum(whole)
    ids = int(lengths.sum(dtype=np.int64))
    return {
        "context": mix.context,
        "window_documents": size,
        "packs": packs,
        "fill": ids / (packs * mix.context),
        "supply_bound": ids / (fewest * mix.context),
        "fill_of_bound": fewest / packs,
        "fill_best_fit": whole_ids / (whole_packs * mix.context),
        "cut_texts": cut / max(1, int(cuttable.sum())),
    }


def _best_fit_packs(lengths: list[int], context: int) -> int:
    rooms: list[int] = []
    packs = 0
    for length in sorted(lengths, reverse=True):
        at = bisect_left(rooms, length)
        packs += at == len(rooms)
        room = rooms.pop(at) if at < len(rooms) else context
        if room > length:
            insort(rooms, room - length)
    return packs


def measure_time(mix: Mix, documents: int, threads: int) -> dict[str, Any]:
    """Pack many documents; the windows' packs are counted and forgotten, as the plan stage writes and forgets them."""
    pack(*draw(mix, 100), mix.context, MIN_PIECE)  # compiles
    before = peak_bytes()
    lengths, cuttable = draw(mix, documents)
    started, cpu = time.perf_counter(), time.process_time()
    ends = list(windows(documents, min(documents, mix.window_documents)))
    packs = sum(len(found) for found in pack_windows(lengths, cuttable, ends, mix.context, MIN_PIECE, threads))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    return {
        "context": mix.context,
        "documents": documents,
        "windows": len(ends),
        "threads": threads,
        "packs": packs,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "bytes_per_document": (peak_bytes() - before) / documents,
    }


def measure_balance(mix: Mix) -> dict[str, Any]:
    """Deal the packs of a window, shuffled as in a plan, step by step."""
    found = pack(*draw(mix, mix.window_documents), mix.context, MIN_PIECE)
    order = np.random.default_rng(0).permutation(len(found))[: len(found) // GLOBAL_PACKS * GLOBAL_PACKS]
    costs, levelled = _costs(found)[order], _levelled(found)[order]
    dealt = np.concatenate([_side_by_side(step) for step in costs.reshape(-1, GLOBAL_PACKS)])
    return {
        "context": mix.context,
        "steps": len(order) // GLOBAL_PACKS,
        "costliest_pack_over_mean": float(costs.max() / costs.mean()),
        "dealt": _wait(dealt),
        "undealt": _wait(costs.reshape(-1, WORLD)),
        "undealt_levelled": _wait(levelled.reshape(-1, WORLD)),
    }


def _wait(costs: NDArray[np.float64]) -> float:
    """Give the mean over micro-steps of the costliest rank ÷ the mean rank; costs are (micro-steps, ranks)."""
    return float((costs.max(axis=1) / costs.mean(axis=1)).mean())


def _costs(packs: Packs) -> NDArray[np.float64]:
    return packs.tokens + ATTENTION_SHARE * packs.squares


def _levelled(packs: Packs) -> NDArray[np.float64]:
    """Give costs as alike as any packing could make them: none below its longest piece's, the same sum."""
    longest = np.maximum.reduceat(packs.length.astype(np.int64), packs.offsets[:-1])
    least, mean = packs.tokens + ATTENTION_SHARE * longest**2, _costs(packs).mean()
    low, high = 0.0, mean
    for _ in range(50):
        level = (low + high) / 2
        low, high = (level, high) if np.maximum(least, level).mean() < mean else (low, level)
    return np.maximum(least, low)


def _side_by_side(costs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give what each rank's micro-steps cost, (micro-steps, ranks)."""
    hands = deal(costs.tolist(), WORLD, 1)
    return costs[np.array(hands)[:, :, 0].T]


def measure(documents: int, threads: int, files: int, folder: Path) -> dict[str, Any]:
    return {
        "time": {"emu3_5120": measure_time(MIXES["emu3_5120"], documents, threads)},  # first: peaks never fall
        "files": {"emu3_5120": plan_files.measure(documents, files, folder)},
        "fill": {name: measure_fill(mix) for name, mix in MIXES.items()},
        "balance": {name: measure_balance(mix) for name, mix in MIXES.items() if mix.clips},
    }


def show(found: dict[str, Any]) -> None:
    for part, rows in found.items():
        print(part)
        for name, row in rows.items():
            phases = row.pop("cpu_us_per_document", {})
            print(f"  {name}: " + ", ".join(f"{key} {value:.6g}" for key, value in row.items()))
            if phases:
                print("    CPU µs a document: " + ", ".join(f"{key} {value:.3g}" for key, value in phases.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000_000, help="to time, from lengths and from files")
    parser.add_argument("--threads", type=int, default=2, help="that pack from lengths")
    parser.add_argument("--files", type=int, help="that the documents are in; absent: one for 100,000")
    parser.add_argument("--folder", type=Path, help="where the index files are kept for the next run")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--planned", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    files = options.files or max(1, options.documents // 100_000)
    if options.planned:
        print(json.dumps(plan_files.planned(options.planned, files)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(options.documents, options.threads, files, options.folder or Path(temporary))
    print(json.dumps(found, indent=1)) if options.json else show(found)


if __name__ == "__main__":
    main()
