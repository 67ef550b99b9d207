"""How many supervised ids a second does the trainer learn from, beside transformers' Trainer on padded batches?

    python benchmarks/train.py [--rounds N] [--json]                   # on CPU, against the Trainer
    python benchmarks/train.py --device cuda [--models 100m,1b] [--contexts 5120,32768] [--json]

On CPU: made-up pictures of 16×16 codes with captions (60 %) and texts (40 %), the model and the context of the demo,
weights 1 for all ids, the same first weights. tokenmill packs them (`tokenmill train`, once with a rank a core, once
with one for all cores); the Trainer pads each batch to its longest document, in random order as it does by default, and
batches of like length for the record, in batches of 8 (its default) and of fewer. Each run has processes of its own,
rounds go through all of them in turn, the first steps of a run are not counted, medians are compared. The Trainer needs
accelerate, which is in the `dev` extra.

With `--device cuda`: tokens a second, share of the peak (MFU) and memory of `100m` and `1b` in bf16, all GPUs of the
machine, each model and context in a run of its own; `--set '{"loss_chunk_tokens": 4096}'` lays train settings over.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(REPOSITORY)  # or `benchmarks` would not be found, and `import select` would find one here


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train in turn with transformers' Trainer."""
    from benchmarks.train_runs import comparison

    amount = comparison.Amount(
        documents=options.documents,
        steps=options.steps or 8,
        warm_up_steps=options.warm_up_steps,
        rounds=options.rounds,
    )
    return comparison.compare(folder, amount)


def sweep(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure models at contexts on this machine's devices."""
    import torch

    from benchmarks.train_runs.devices import Sweep, rows

    is_cuda = options.device == "cuda"
    plan = Sweep(
        device=options.device,
        models=tuple(options.models.split(",")),
        contexts=tuple(int(context) for context in options.contexts.split(",")),
        steps=options.steps or 12,
        warm_up_steps=options.warm_up_steps,
        ranks=torch.cuda.device_count() if is_cuda else 1,
        peak_tflops=options.peak_tflops,
        said=json.loads(options.set),
        **json.loads(options.sizes),
    )
    found = []
    for row in rows(plan, folder):
        print(_told(row), file=sys.stderr)
        found.append(row)
    return {"device": torch.cuda.get_device_name() if is_cuda else "cpu", "ranks": plan.ranks, "runs": found}


def _told(row: Mapping[str, Any]) -> str:
    named = f"{row['model']} at {row['context']}"
    if "error" in row:
        return f"{named}: {row['error'].splitlines()[-1]}"
    share = f"{row['mfu']:.3f}" if row["mfu"] else "unknown"
    return (f"{named}: {row['parameters'] / 1e6:.1f} M parameters, {row['tokens_per_s']:.0f} ids/s, MFU {share}, "
            f"{row['memory_gib']:.1f} GiB, data wait {row['data_wait_share']:.2%}")  # fmt: skip


def show(found: Mapping[str, Any]) -> None:
    if "best" not in found:
        for row in found["runs"]:
            print(_told(row))
        return
    for name, row in found["runs"].items():
        print(f"{name}: {row['supervised_per_s']:.0f} supervised ids/s ({row['least']:.0f} to {row['most']:.0f}), "
              f"{row['supervised_share']:.0%} of the ids that are computed; loss {row['first_loss']:.3f} → "
              f"{row['last_loss']:.3f}")  # fmt: skip
    print(f"times the Trainer: {found['ratio']:.2f}; each: {found['ratios']}")
    print(f"waiting for data: {found['data_wait_share']:.2%} of a step")


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sweep", action="store_true", help="measure models on the CPU as on GPUs")
    parser.add_argument("--models", default="100m,1b", help="presets")
    parser.add_argument("--contexts", default="5120,32768")
    parser.add_argument("--set", default="{}", metavar="JSON", help="train settings laid over those of the sweep")
    parser.add_argument("--sizes", default="{}", metavar="JSON", help="codebook, side, step_ids of the sweep")
    parser.add_argument("--peak-tflops", type=float, help="of a device that is not in train/devices.py")
    parser.add_argument("--documents", type=int, default=1_500)
    parser.add_argument("--steps", type=int, help="of a run: 8 on the CPU, 12 in a sweep")
    parser.add_argument("--warm-up-steps", type=int, default=2, help="of them, that do not count")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    os.environ.setdefault("DS_ACCELERATOR", options.device)  # or DeepSpeed says on stdout that it looked for one
    run = sweep if options.device == "cuda" or options.sweep else compare
    with tempfile.TemporaryDirectory() as scratch:
        found = run(Path(scratch), options)
    print(json.dumps(found, indent=1)) if options.json else show(found)


if __name__ == "__main__":
    main()
