"""How full are packs, and how long does packing take, on lengths like Emu3's?

    python benchmarks/packing.py [--documents N] [--json]

Lengths: 40 % pictures of 64×64 codes, 20 % of 32×32, 40 % text (log-normal, median 600, sigma 1.2), fixed seed. Beside
the packing of the plan stage stands the same without cutting texts.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from tokenmill.pipelines.packing import fill_fraction, pack

CONTEXTS = (5_120, 131_072)
MIN_PIECE = 16
_PICTURES = (64 * 65 + 70, 32 * 33 + 70)


def emu3_lengths(documents: int, seed: int = 0) -> tuple[list[int], list[bool]]:
    """Draw lengths, and whether each document may be cut."""
    random = np.random.default_rng(seed)
    kinds = random.choice(3, size=documents, p=[0.4, 0.2, 0.4])
    texts = np.maximum(2, random.lognormal(np.log(600), 1.2, size=documents)).astype(int)
    lengths = [int(texts[n]) if kind == 2 else _PICTURES[kind] for n, kind in enumerate(kinds)]
    return lengths, [bool(kind == 2) for kind in kinds]


def measure(documents: int, context: int) -> dict[str, Any]:
    """Pack with and without cutting texts."""
    lengths, cuttable = emu3_lengths(documents)
    started = time.perf_counter()
    packs = pack(lengths, cuttable, context, MIN_PIECE)
    seconds = time.perf_counter() - started
    uncut = pack([min(length, context) for length in lengths], [False] * documents, context, MIN_PIECE)
    return {
        "context": context,
        "documents": documents,
        "packs": len(packs),
        "fill": fill_fraction(packs, context),
        "fill_uncut": fill_fraction(uncut, context),
        "seconds": seconds,
        "documents_per_s": documents / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000, help="in one window")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [measure(options.documents, context) for context in CONTEXTS]
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(
            f"context {row['context']:>7,}: fill {row['fill']:.4f} (uncut {row['fill_uncut']:.4f}), "
            f"{row['packs']:,} packs, {row['documents_per_s']:,.0f} documents/s"
        )


if __name__ == "__main__":
    main()
