"""How many ids a second are drawn inside the grammar, beside transformers' `generate`?

    python benchmarks/generate.py [--side N] [--batch N] [--rounds N] [--threads N] [--json]

Pictures from an untrained model of the preset `tiny` with Emu3's vocabulary (184,622 ids, 32,768 of them codes), drawn
at temperature 1 and top-k 2048 from captions of different length, with guidance 3.0 against the unconditional prompt
and without. transformers' way is the released code's (generate_peers/transformers_way.py): a Python prefix function,
its guidance processor with a cache of its own, batches padded on the left; once with the codes as the tuple that the
released code gives and once as a tensor, which is faster. Rounds go through all ways in turn, medians are compared; ids
of a picture are all that come behind its prompt. tokenmill draws from a model of this width on one thread whatever
`--threads` says (generate/threads.py); the others get as many as that.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(REPOSITORY)  # or `benchmarks` would not be found, and `import select` would find one here

CAPTIONS = ("a red circle", "two blue squares on grey", "a small yellow triangle above a large green circle",
            "three purple circles", "a green square", "a white background with a single small red triangle on it",
            "a blue circle left of a yellow square", "nothing but noise")  # fmt: skip
GUIDANCE, TOP_K = 3.0, 2_048


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Draw in turn."""
    import torch

    from tokenmill.tokenize.vocabulary import vocabulary_shape

    torch.set_num_threads(options.threads)
    vocabulary = vocabulary_shape({"name": "emu3"})  # captions as bytes: the file with Qwen's ranks is not needed
    model = _model(vocabulary, context=4 * options.side**2 + 256)
    contestants = _contestants(model, vocabulary, options)
    num_ids = options.batch * (options.side * (options.side + 1) + 3)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for contest in contestants.values() if options.warm_up else ():
        contest()
    for _ in range(options.rounds):
        for name, contest in contestants.items():
            started = time.perf_counter()
            contest()
            rates[name].append(num_ids / (time.perf_counter() - started))
            print(f"{name}: {rates[name][-1]:.0f} ids/s", file=sys.stderr)
    found = {name: median(of_rounds) for name, of_rounds in rates.items()}
    return {
        "cores": len(os.sched_getaffinity(0)),
        "threads": options.threads,
        "vocabulary": vocabulary.size,
        "codes": vocabulary.codebook_size,
        "grid": [options.side, options.side],
        "batch": options.batch,
        "rounds": options.rounds,
        "ids_per_s": found,
        "of_rounds": rates,
        "ratio": found["tokenmill, guided"] / found["transformers, guided"],
        "ratio_unguided": found["tokenmill"] / found["transformers"],
        "ratio_released": found["tokenmill, guided"] / found["transformers as released, guided"],
    }


def _model(vocabulary: Any, context: int) -> Any:
    import torch
    from transformers import Emu3ForCausalLM

    from tokenmill.settings_model import ModelSettings
    from tokenmill.train.model import model_config

    torch.manual_seed(0)
    return Emu3ForCausalLM(model_config(ModelSettings(preset="tiny"), vocabulary, context)).eval()


def _contestants(model: Any, vocabulary: Any, options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Give everybody's way to draw one batch."""
    from benchmarks.generate_peers.transformers_way import Grid, draw
    from tokenmill.generate.prompts import drawing_prompt
    from tokenmill.generate.sample import generate_vision
    from tokenmill.tokenize.documents import VisionSegment

    side, texts = options.side, [CAPTIONS[number % len(CAPTIONS)] for number in range(options.batch)]
    segment = VisionSegment(1, side, side, 0)
    prompts = [drawing_prompt(vocabulary, text, segment) for text in texts]
    against = [drawing_prompt(vocabulary, "", segment)] * len(prompts)

    def ours(guidance: float) -> Any:
        return generate_vision(
            model, vocabulary, texts, side, side, top_k=TOP_K, guidance=guidance, batch_size=options.batch
        )

    def theirs(guidance: float, *, as_tensor: bool) -> Any:
        return draw(model, vocabulary, Grid(height=side, width=side), prompts, against, guidance=guidance, top_k=TOP_K,
                    temperature=1.0, as_tensor=as_tensor)  # fmt: skip

    return {
        "tokenmill, guided": lambda: ours(GUIDANCE),
        "transformers, guided": lambda: theirs(GUIDANCE, as_tensor=True),
        "transformers as released, guided": lambda: theirs(GUIDANCE, as_tensor=False),
        "tokenmill": lambda: ours(1.0),
        "transformers": lambda: theirs(1.0, as_tensor=True),
    }


def show(found: Mapping[str, Any]) -> None:
    for name, rate in found["ids_per_s"].items():
        of_rounds = found["of_rounds"][name]
        print(f"{name}: {rate:.0f} ids/s ({min(of_rounds):.0f} to {max(of_rounds):.0f})")
    print(f"times transformers: {found['ratio']:.1f} with guidance ({found['ratio_released']:.1f} as released), "
          f"{found['ratio_unguided']:.1f} without")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8, help="codes a side of the pictures")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of transformers' way")
    parser.add_argument("--no-warm-up", dest="warm_up", action="store_false")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    found = compare(options)
    print(json.dumps(found, indent=1)) if options.json else show(found)


if __name__ == "__main__":
    main()
