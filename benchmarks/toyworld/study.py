"""The toy world at several sizes of model, and one mixed model against two specialists: `make toyworld-study`.

    python -m benchmarks.toyworld.study --device cuda [--sizes small medium large] [--quick] [--json]

The same stages, exhibits and judges as `make toyworld` (run.py), on more data; all models share one vision tokenizer,
so one ceiling. Specialists have the medium size and as many ids: pictures alone, clips alone. Comes out: `study.json`,
`study.md` (each aim met or missed) and `study.png` (loss and scores against the number of parameters). The trade-off:
one run a size and no seeds repeated, so differences within the intervals of the table mean nothing.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.toyworld.exhibits import choose_sampler
from benchmarks.toyworld.results import judged
from benchmarks.toyworld.run import STATE, Step, end_well, say_nothing, say_on_stdout, walk
from benchmarks.toyworld.sizes import QUICK, Size
from benchmarks.toyworld.stages import Toy, put_json, recipe_texts
from benchmarks.toyworld.study_report import write_report
from tokenmill.errors import TokenmillError

FULL = Size(
    pictures=60_000,
    clips=10_000,
    prompts=200,
    unseen=80,
    questions=200,
    motions=180,
    overrides=("tokenizer.steps=3000",),
)
MODELS: Mapping[str, str] = {
    "small": "{hidden: 128, layers: 4, heads: 2, kv_heads: 1, ffn: 352, rope_base: 10000}",
    "medium": "{hidden: 256, layers: 5, heads: 4, kv_heads: 2, ffn: 704, rope_base: 10000}",
    "large": "{hidden: 512, layers: 8, heads: 8, kv_heads: 4, ffn: 1408, rope_base: 10000}",
}
QUICK_MODELS: Mapping[str, str] = {
    "small": "{hidden: 16, layers: 1, heads: 1, kv_heads: 1, ffn: 32}",
    "medium": "{hidden: 32, layers: 1, heads: 2, kv_heads: 1, ffn: 64}",
    "large": "{hidden: 32, layers: 2, heads: 2, kv_heads: 1, ffn: 64}",
}
TOKENS, QUICK_TOKENS = (24_000_000, 12_000_000), (4_000, 3_000)  # of the two phases
SHARES: Mapping[str, tuple[float, float]] = {
    "mixed": (1.0, 0.5),
    "pictures": (1.0, 1.0),
    "clips": (0.0, 0.0),
}  # of pictures
SPECIALISTS = ("pictures", "clips")
ON_CUDA = (
    "tokenizer.device=cuda",
    "tokenizer.ranks=1",
    "tokenize.vision.device=cuda",
    "train.device=cuda",
    "train.ranks=1",
    "train.precision=bf16",
    "train.warmup_steps=100",
    "train.loss_chunk_tokens=16384",
    "train.phases.pictures.global_packs_per_step=32",  # 16,384 ids a step: a GPU takes 50 ms for them or for 1,024
    "train.phases.pictures.micro_packs=32",
    "train.phases.clips.global_packs_per_step=16",
    "train.phases.clips.micro_packs=16",
    "train.lr=0.002",  # for sixteen times the ids a step
    "train.phases.clips.lr=0.001",
)


def main() -> int:
    """Run what is left of the study."""
    signal.signal(signal.SIGTERM, end_well)
    options = _parsed()
    size = QUICK if options.quick else FULL
    device = ON_CUDA if options.device == "cuda" else ()
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    toy = Toy(out=out, size=size, overrides=(*size.overrides, *device, *options.overrides))
    try:
        seconds = walk(
            out / STATE,
            steps_of(toy, options.sizes, quick=options.quick, device=options.device),
            say_nothing if options.json else say_on_stdout,
        )
    except TokenmillError as error:
        print(f"toyworld-study: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("toyworld-study: interrupted; run it again to resume", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps({"seconds": seconds, "results": json.loads((out / "study.json").read_text())}))
    return 0


def steps_of(toy: Toy, sizes: list[str], *, quick: bool, device: str = "cpu") -> list[Step]:
    """Return the study's steps in their order."""
    recipe = [*recipe_texts(toy), str(quick)]
    asked = repr(toy.size)
    runs = {f"mixed-{size}": ("mixed", size) for size in sizes}
    runs |= {f"only-{what}": (what, "medium" if "medium" in sizes else sizes[0]) for what in SPECIALISTS}
    exports = {run: toy.root / "checkpoints" / f"{run}-clips" / "export" for run in runs}
    steps = [
        Step(name="data", minutes=6, do=toy.write_data, identity=asked),
        Step(name="words", minutes=0.2, do=toy.train_words, identity=None),
        Step(name="tokenizer", minutes=30, do=toy.train_tokenizer, identity=recipe),
    ]
    for run, (what, size) in runs.items():
        changes = changes_of(run, what, size, quick=quick)
        steps.append(
            Step(
                name=run,
                minutes=60,
                do=lambda r=run, c=changes: toy.train(r, *c),
                identity=[recipe, changes],
            )
        )  # type: ignore[misc]
    for run, export in exports.items():
        steps.append(
            Step(name=f"draw {run}", minutes=5, do=lambda r=run, e=export: _draw(toy, r, e, device), identity=asked)
        )  # type: ignore[misc]
    steps.append(Step(name="judge", minutes=10, do=lambda: _judge(toy, exports), identity=asked))
    steps.append(Step(name="report", minutes=0.1, do=lambda: write_report(toy.out), identity=asked))
    return steps


def changes_of(run: str, what: str, size: str, *, quick: bool) -> list[str]:
    """Return a run's overrides: its model, and two phases of as many ids as all others have, of its own mix."""
    contexts, tokens = ((256, 512), QUICK_TOKENS) if quick else ((512, 1024), TOKENS)
    changes = [f"train.run={run}", f"train.model={(QUICK_MODELS if quick else MODELS)[size]}"]
    for seed, (phase, share) in enumerate(zip(("pictures", "clips"), SHARES[what], strict=True)):
        mix = {"pictures": {"share": share, "max_epochs": 1000}, "clips": {"share": 1 - share, "max_epochs": 1000}}
        phase_plan = {"context": contexts[seed], "tokens": tokens[seed], "seed": seed, "mix": mix}
        changes.append(f"plan.phases.{phase}={json.dumps(phase_plan)}")
    held = {"context": contexts[1], "part": "held_out", "mix": {"pictures": 1, "clips": 1}}
    changes.append(f"plan.phases.held={json.dumps(held)}")
    last = {"phase": "held", "every": 10**6, "packs": None}
    return [*changes, f"train.phases.clips.evaluation={json.dumps(last)}"]


def _draw(toy: Toy, run: str, export: Path, device: str = "cpu") -> None:
    """Choose a model's own sampler by validation prompts, and let it make what is judged."""
    from benchmarks.toyworld.exhibits import exhibit

    chosen = toy.out / f"sampler-{run}.json"
    put_json(chosen, choose_sampler(export, toy.size, device))
    exhibit(export, toy.drawn(run), toy.size, json.loads(chosen.read_text()), device)


def _judge(toy: Toy, exports: Mapping[str, Path]) -> None:
    drawn = {run: toy.drawn(run) for run in exports}
    found: dict[str, Any] = judged(drawn, next(iter(exports.values())), toy.size)
    for run, export in exports.items():
        rows = (export.parent / "evaluation.jsonl").read_text().splitlines()
        found["models"][run] |= {
            "parameters": _parameters(export),
            "held_out": json.loads(rows[-1]),
            "sampler": json.loads((toy.out / f"sampler-{run}.json").read_text()),
        }
    put_json(toy.out / "study.json", found)


def _parameters(export: Path) -> int:
    """Count a model's parameters, by the shapes in its file's header."""
    from safetensors import safe_open

    with safe_open(str(export / "model.safetensors"), "np") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118 - not a mapping
    total = 0
    for shape in shapes:
        count = 1
        for side in shape:
            count *= side
        total += count
    return total


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("toyworld-study-out"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sizes", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--quick", action="store_true", help="a tiny size that shows that all steps work, and no more")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="key.path=value")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
