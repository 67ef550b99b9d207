"""`tokenmill evaluate NAME`: draw a benchmark of the field into the layout its scorer expects, or read its results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmill.errors import RecipeError

if TYPE_CHECKING:
    from tokenmill.pipelines.benchmarks.benchmark import Benchmark
    from tokenmill.pipelines.benchmarks.folder import BenchmarkFolder


def is_benchmark(name: str) -> bool:
    """Say whether `evaluate NAME` means a benchmark: a bare word where no recipe lies."""
    return not name.startswith("-") and not {".", "/", "="} & set(name) and not Path(name).is_file()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    names = "geneval, t2i-compbench, dpg-bench, coco30k, vbench, or one of an installed package"
    parser.add_argument("name", metavar="NAME", help=names)
    text = "settings of the benchmark, such as samples=2 (docs/evaluation.md)"
    parser.add_argument("overrides", nargs="*", metavar="option=value", help=text)
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="exported model, its run's folder, or one of transformers, as of draw; absent: nothing is drawn",
    )
    text = "the benchmark's own prompt file, or a folder of them; local path or URL"
    parser.add_argument("--prompts", metavar="FILE", help=text)
    parser.add_argument("--out", metavar="FOLDER", help="where to draw to; what is there already is left alone")
    text = "its scorer's result file, or LABEL=FILE; may be several: a table beside the paper's figures"
    parser.add_argument("--results", nargs="+", action="extend", metavar="FILE", help=text)
    text = 'JSON Lines of {"prompt", "rewritten"}: what the model is given instead; files keep the prompt\'s name'
    parser.add_argument("--rewritten", metavar="FILE", help=text)
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N prompts")
    text = "do every N-th prompt from the I-th on (1/4 … 4/4): several processes share a folder"
    parser.add_argument("--shard", type=_shard, default=(0, 1), metavar="I/N", help=text)
    _sampling_arguments(parser)
    likeness = parser.add_argument_group("MSCOCO-30K")
    text = "folder of the photographs (val2014): measure FID, CLIP-I and CLIP-T of what was drawn"
    likeness.add_argument("--references", metavar="FOLDER", help=text)
    text = "weights of the FID's Inception, or folder of an image encoder; absent: no Fréchet distance"
    likeness.add_argument("--features", default="", metavar="FILE", help=text)
    text = "open_clip folder, or a name with --clip-weights; absent: no CLIP-I, no CLIP-T"
    likeness.add_argument("--clip", default="", metavar="FOLDER", help=text)
    likeness.add_argument("--clip-weights", default="", metavar="FILE", help="weights for a --clip that is a name")
    text = "how to reach paths, as in a recipe's storage section; may be given several times"
    parser.add_argument("--storage", action="append", default=[], metavar="KEY=VALUE", help=text)


def _sampling_arguments(parser: argparse.ArgumentParser) -> None:
    sampling = parser.add_argument_group("sampling", "the defaults are those of Emu3's evaluation")
    sampling.add_argument("--height", type=int, default=512, metavar="PX", help="of a picture or frame (512)")
    sampling.add_argument("--width", type=int, default=512, metavar="PX", help="of a picture or frame (512)")
    sampling.add_argument("--fps", type=float, default=24.0, metavar="N", help="frames a second of a clip (24)")
    sampling.add_argument("--seconds", type=float, default=5.0, metavar="S", help="of a clip (5)")
    sampling.add_argument("--top-k", type=int, default=16_384, metavar="K", help="likeliest codes, 0 for all (16384)")
    sampling.add_argument("--top-p", type=float, default=1.0, metavar="P", help="of their probability (1)")
    sampling.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0 for the likeliest (1)")
    text = "away from --negative, 1 for none (5; GenEval 5.5)"
    sampling.add_argument("--guidance", type=float, metavar="G", help=text)
    sampling.add_argument("--negative", default="", metavar="TEXT", help="prompt of guidance; empty: none at all")
    sampling.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the run; each sample has its own from it"
    )
    sampling.add_argument("--batch-size", type=int, default=8, metavar="N", help="samples at once (8)")
    sampling.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda, … (cpu)")
    sampling.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the model (float32)"
    )


def evaluate_benchmark(options: argparse.Namespace) -> int:
    """Draw, measure, or read results: whatever the options name."""
    from tokenmill.pipelines.benchmarks.benchmark import open_benchmark

    benchmark = open_benchmark(options.name, _settings(options.overrides))
    found = _results(options, benchmark) if options.results else _drawn(options, benchmark)
    print(json.dumps(found, indent=1, ensure_ascii=False) if options.json else _told(found))
    return 0


def _results(options: argparse.Namespace, benchmark: Benchmark) -> dict[str, Any]:
    from tokenmill.pipelines.benchmarks.comparison import compared
    from tokenmill.pipelines.benchmarks.prompt_files import read_results
    from tokenmill.recipe import storage_options

    files = read_results(options.results, storage_options(options.storage))
    return compared(benchmark, benchmark.scores(files))


def _drawn(options: argparse.Namespace, benchmark: Benchmark) -> dict[str, Any]:
    if not options.out or not (options.model or options.references):
        raise RecipeError("name --model, --prompts and --out to draw, --references and --out to measure, or --results")
    from tokenmill.manifests.storage import open_store
    from tokenmill.pipelines.benchmarks.folder import BenchmarkFolder
    from tokenmill.recipe import storage_options

    folder = BenchmarkFolder(open_store(options.out, storage_options(options.storage)))
    found = _draw(options, benchmark, folder) if options.model else {}
    return found | (_likeness(options, benchmark, folder) if options.references else {})


def _draw(options: argparse.Namespace, benchmark: Benchmark, folder: BenchmarkFolder) -> dict[str, Any]:
    if not options.prompts:
        raise RecipeError(f"--prompts: {benchmark.title}'s own prompt file is wanted")
    if options.limit is not None and options.limit < 1:
        raise RecipeError(f"--limit {options.limit}: has to be at least 1")
    from tokenmill.generate.sampling import Sampling
    from tokenmill.pipelines.benchmarks.brush import Settings
    from tokenmill.pipelines.benchmarks.drawing import BenchmarkDrawing, Work
    from tokenmill.pipelines.benchmarks.prompt_files import read_files, read_rewritten
    from tokenmill.recipe import storage_options

    storage = storage_options(options.storage)
    prompts = benchmark.prompts(read_files(options.prompts, benchmark.endings, storage))
    texts = read_rewritten(options.rewritten, storage) if options.rewritten else {}
    guidance = benchmark.guidance if options.guidance is None else options.guidance
    sampling = Sampling(top_k=options.top_k, top_p=options.top_p, temperature=options.temperature, guidance=guidance)
    settings = Settings(
        height=options.height, width=options.width, fps=options.fps, seconds=options.seconds, sampling=sampling,
        negative=options.negative, seed=options.seed, dtype=options.dtype,
    )  # fmt: skip
    work = Work(device=options.device, batch_size=options.batch_size, shard=options.shard, limit=options.limit)
    drawing = BenchmarkDrawing(options.name, benchmark, options.model, folder, settings, work, storage)
    return drawing.run(prompts, texts, prompt_file=options.prompts)


def _likeness(options: argparse.Namespace, benchmark: Benchmark, folder: BenchmarkFolder) -> dict[str, Any]:
    if options.name != "coco30k":
        raise RecipeError(f"--references: {benchmark.title} has no photographs to compare with; coco30k has")
    from tokenmill.manifests.storage import open_store
    from tokenmill.pipelines.benchmarks.benchmark import Score
    from tokenmill.pipelines.benchmarks.comparison import compared
    from tokenmill.pipelines.benchmarks.likeness import Networks, measure_likeness
    from tokenmill.recipe import storage_options

    networks = Networks(
        features=options.features, clip=options.clip, pretrained=options.clip_weights, device=options.device
    )
    references = open_store(options.references, storage_options(options.storage))
    found = measure_likeness(folder, references, networks)
    return {**compared(benchmark, [Score(**row) for row in found["measures"]]), "likeness": found}


def _told(found: dict[str, Any]) -> str:
    lines = []
    if "folder" in found:
        lost = ", ".join(f"{reason} {number:,}" for reason, number in found["left_out"].items()) or "nothing"
        lines += [
            f"{found['prompts']:,} prompts, {found['rewritten']:,} of them rewritten, {found['new_files']:,} new files",
            f"{found['files']:,} files in {found['folder']}",
            f"left out: {lost}",
            f"for its scorer: {found['scored']}",
        ]
    if "rows" in found:
        from tokenmill.pipelines.benchmarks.comparison import render

        lines.append(render(found))
    if failed := found.get("likeness", {}).get("failed"):
        lines.append("not measured: " + ", ".join(f"{reason} {number:,}" for reason, number in failed.items()))
    return "\n".join(lines)


def _settings(overrides: Sequence[str]) -> dict[str, Any]:
    import yaml

    found = {}
    for text in overrides:
        name, separator, value = text.partition("=")
        if not separator:
            raise RecipeError(f"{text}: a setting of a benchmark is option=value")
        found[name] = yaml.safe_load(value)
    return found


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not number.isdecimal() or not count.isdecimal() or not 1 <= int(number) <= int(count):
        raise argparse.ArgumentTypeError(f"I/N with 1 <= I <= N, found {text!r}")
    return int(number) - 1, int(count)
