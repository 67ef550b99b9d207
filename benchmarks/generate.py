"""How many ids a second are drawn inside the grammar, beside transformers' `generate`?

    python benchmarks/generate.py [--side N] [--batch N] [--rounds N] [--threads N] [--device cuda] [--json]

Pictures from an untrained model of the preset `tiny` with Emu3's vocabulary (184,622 ids, 32,768 of them codes), drawn
at temperature 1 and top-k 2048 from captions of different length, with guidance 3.0 against the unconditional prompt
and without. transformers' way is the released code's (generate_peers/transformers_way.py): a Python prefix function,
its guidance processor with a cache of its own, batches padded on the left; once with the codes as the tuple that the
released code gives and once as a tensor, which is faster. Rounds go through all ways in turn, medians are compared, of
seconds that passed and of CPU seconds (which other work on the machine disturbs less); ids of a picture are all that
come behind its prompt. tokenmill draws from a model of this width on one thread whatever `--threads` says
(generate/threads.py); the others get as many as that.
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
    model = _model(vocabulary, context=4 * options.side**2 + 256).to(options.device)
    contestants = _contestants(model, vocabulary, options)
    num_ids = options.batch * (options.side * (options.side + 1) + 3)
    for contest in contestants.values() if options.warm_up else ():
        contest()
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, contest in contestants.items():
            rounds[name].append(_rates(contest, num_ids))
            print(f"{name}: {rounds[name][-1][0]:.0f} ids/s", file=sys.stderr)
    found = {name: median(passed for passed, _ in of_rounds) for name, of_rounds in rounds.items()}
    per_cpu = {name: median(cpu for _, cpu in of_rounds) for name, of_rounds in rounds.items()}
    return {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "cores": len(os.sched_getaffinity(0)),
        "threads": options.threads,
        "vocabulary": vocabulary.size,
        "codes": vocabulary.codebook_size,
        "grid": [options.side, options.side],
        "batch": options.batch,
        "rounds": options.rounds,
        "ids_per_s": found,
        "ids_per_cpu_s": per_cpu,
        "of_rounds": {name: [passed for passed, _ in of_rounds] for name, of_rounds in rounds.items()},
        "ratio": _ratios(found),
        "ratio_cpu": _ratios(per_cpu),
        "step_cpu_ms": _step_cpu_ms(model, 2 * options.batch, options.rounds) if options.device == "cpu" else {},
    }


def _step_cpu_ms(model: Any, rows: int, rounds: int) -> dict[str, float]:
    """Time one id of every row through the layers alone, by our forward and by the model's, 100 to 150 ids read."""
    import torch

    from tokenmill.generate.llama_decoder import LlamaDecoder
    from tokenmill.generate.model_decoder import ModelDecoder

    times: dict[str, list[float]] = {"tokenmill": [], "transformers": []}
    ids_BL = torch.arange(100).repeat(rows, 1)
    with torch.inference_mode():
        for _ in range(rounds):
            for name, kind in (("tokenmill", LlamaDecoder), ("transformers", ModelDecoder)):
                decoder = kind(model, rows, 151)
                decoder.read(ids_BL, torch.arange(rows), torch.arange(rows))
                decoder.feed(ids_BL[:, :1])
                started = time.process_time()
                for place in range(50):
                    decoder.feed(ids_BL[:, place, None])
                times[name].append((time.process_time() - started) / 50 * 1e3)
    return {name: median(found) for name, found in times.items()}


def _rates(contest: Callable[[], Any], num_ids: int) -> tuple[float, float]:
    """Give ids a second and ids a second of CPU."""
    started, started_cpu = time.perf_counter(), time.process_time()
    contest()
    return num_ids / (time.perf_counter() - started), num_ids / (time.process_time() - started_cpu)


def _ratios(rates: Mapping[str, float]) -> dict[str, float]:
    ours, guided = rates["tokenmill"], rates["tokenmill, guided"]
    return {
        "guided": guided / rates["transformers, guided"],
        "guided, as released": guided / rates["transformers as released, guided"],
        "unguided": ours / rates["transformers"],
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
        of_rounds, per_cpu = found["of_rounds"][name], found["ids_per_cpu_s"][name]
        print(f"{name}: {rate:.0f} ids/s ({min(of_rounds):.0f} to {max(of_rounds):.0f}), {per_cpu:.0f} per CPU second")
    for name, ratio in found["ratio"].items():
        print(f"times transformers, {name}: {ratio:.1f}; per CPU second {found['ratio_cpu'][name]:.1f}")
    for name, milliseconds in found["step_cpu_ms"].items():
        print(f"a step through the layers, {name}: {milliseconds:.2f} ms of CPU")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8, help="codes a side of the pictures")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the model, whichever way draws")
    parser.add_argument("--threads", type=int, default=1, help="of transformers' way")
    parser.add_argument("--no-warm-up", dest="warm_up", action="store_false")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    found = compare(options)
    print(json.dumps(found, indent=1)) if options.json else show(found)


if __name__ == "__main__":
    main()
