"""How many ids a second does the loader give, and how long is it until the first batch, wherever the run resumes?

    python benchmarks/loader.py [--samples N] [--json]

A made-up source of pictures of 64×64 codes with captions (60 %) and texts (40 %), context 5,120, one epoch, warm cache;
beside it a plain copy of as many uint16 ids to int64, which no loader can beat.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from typing import Any

import numpy as np

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.manifests.plans import Plan, open_plan
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.loader import PlanLoader

GLOBAL_PACKS = 16
CONTEXT = 5_120
VOCABULARY = byte_vocabulary(2_048)


def epoch(plan: Plan, threads: int) -> dict[str, Any]:
    """Go through the plan once; `threads` 0 reads in the caller's thread."""
    loader = PlanLoader(plan, VOCABULARY, global_packs=GLOBAL_PACKS, threads=max(1, threads), read_ahead_steps=4)
    total = loader.steps_per_epoch
    steps = loader.steps(0, total) if threads else map(loader.step, range(total))
    started = time.perf_counter()
    tokens = sum(step.num_tokens for step in steps)
    seconds = time.perf_counter() - started
    return {"threads": threads, "tokens": tokens, "tokens_per_s": tokens / seconds}


def first_batch(path: str, root: str, share: float) -> dict[str, Any]:
    """Measure from opening the plan to the first step at a place in the epoch."""
    started = time.perf_counter()
    loader = PlanLoader(open_plan(open_store(root), path), VOCABULARY, global_packs=GLOBAL_PACKS)
    loader.step(int(share * (loader.steps_per_epoch - 1)))
    return {"at": share, "seconds": time.perf_counter() - started}


def plain_copy(tokens: int) -> float:
    """Return ids a second of copying uint16 to int64, a pack at a time."""
    source = np.zeros((max(1, tokens // CONTEXT), CONTEXT), np.uint16)
    started = time.perf_counter()
    for row in source:
        row.astype(np.int64)
    return source.size / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        store = open_store(root)
        amounts = Amounts(
            images=options.samples * 6 // 10, texts=options.samples * 4 // 10, side=64, text_words=150, shards=8
        )
        plan = write_plan(
            store, [write_token_source(store, "made-up", VOCABULARY, amounts)], PlanSettings(context=CONTEXT)
        )
        rows = [epoch(plan, threads) for threads in (0, 0, 2)][1:]
        found = {
            "samples": options.samples,
            "fill": plan.description["fill"],
            "epochs": rows,
            "copy_tokens_per_s": plain_copy(rows[0]["tokens"]),
            "first_batch": [first_batch(plan.folder.path, root, share) for share in (0.01, 0.5, 0.99)],
        }
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for row in rows:
        print(f"{row['threads']} threads: {row['tokens_per_s'] / 1e6:.1f} million ids/s")
    print(f"copy: {found['copy_tokens_per_s'] / 1e6:.0f} million ids/s")
    for row in found["first_batch"]:
        print(f"first batch at {row['at']:.0%}: {row['seconds']:.2f} s")


if __name__ == "__main__":
    main()
