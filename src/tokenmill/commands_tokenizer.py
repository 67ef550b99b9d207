"""`tokenmill evaluate tokenizer SPEC --data PATH…`: what a vision tokenizer keeps of pictures and clips."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenmill.errors import RecipeError

_LEAST_SIDE_PX = 16  # SSIM looks at 11 pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("spec", metavar="SPEC", help="vision tokenizer: a name, a folder or a hub name")
    parser.add_argument("overrides", nargs="*", metavar="option=value", help="options of it, such as dtype=bfloat16")
    text = "folder of pictures or clips, raw shard (.tar) or file; URL or local path; a recipe: what it selected"
    parser.add_argument("--data", action="append", nargs="+", metavar="PATH", required=True, help=text)
    parser.add_argument(
        "--sizes", type=_sides, default=(128, 256, 512), metavar="N,N", help="square roots of areas (128,256,512)"
    )
    parser.add_argument("--lpips", metavar="FILE", help="weights of LPIPS, or a folder of them; absent: not measured")
    text = "weights of the FID's Inception, or folder of an image encoder; absent: no Fréchet distance"
    parser.add_argument("--features", metavar="FILE", help=text)
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N pictures and N clips")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, …; absent: the tokenizer's own default")
    text = "how to reach the data, as in a recipe's storage section; may be given several times"
    parser.add_argument("--storage", action="append", default=[], metavar="KEY=VALUE", help=text)


def evaluate_tokenizer(options: argparse.Namespace) -> int:
    """Measure, and print a table or JSON."""
    found = measure(options)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        from tokenmill.pipelines.tokenizer_evaluation import render

        print(render(found))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the rows of every kind and size, what failed, and what was measured with."""
    if options.limit is not None and options.limit < 1:
        raise RecipeError(f"--limit {options.limit}: has to be at least 1")
    from tokenmill.recipe import storage_options

    paths, storage = [path for given in options.data for path in given], storage_options(options.storage)
    from tokenmill.pipelines.tokenizer_data import check_paths

    check_paths([path for path in paths if not _is_recipe(path)], storage)
    from tokenmill.generate.picture_features import open_features, open_lpips
    from tokenmill.generate.reconstruction_tally import Measures
    from tokenmill.pipelines.tokenizer_evaluation import PAPER, Asked, Evaluation
    from tokenmill.tokenize.vision import load_vision_tokenizer
    from tokenmill.tokenize.vision_device import opened_device

    vision = load_vision_tokenizer(options.spec, **_options(options))
    device = options.device or "cpu"
    opened_device(device, "--device")
    features = open_features(options.features, device) if options.features else None
    measures = Measures(
        lpips=open_lpips(options.lpips, device) if options.lpips else None,
        features=features.measure if features else None,
        device=device,
    )
    evaluation = Evaluation(vision, Asked(sides_px=options.sizes, limit=options.limit, measures=measures))
    evaluation.run(_data(paths, storage))
    return {
        "tokenizer": options.spec,
        "fingerprint": vision.fingerprint,
        "codebook_size": vision.codebook_size,
        "features": features.name if features else None,
        "is_fid": bool(features and features.is_fid),
        "rows": evaluation.rows(),
        "taken": dict(evaluation.taken),
        "failed": {kind: dict(sorted(reasons.items())) for kind, reasons in evaluation.failed.items()},
        "paper": [
            {"side_px": side, "lpips": lpips, "psnr_db": psnr, "ssim": ssim, "videos": 3172}
            for side, (lpips, psnr, ssim) in PAPER.items()
        ],
    }


def _data(paths: Sequence[str], storage: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the originals of every path in turn: of a recipe, what it selected."""
    from tokenmill.pipelines.decoding import DecodeLimits
    from tokenmill.pipelines.tokenizer_data import originals

    for path in paths:
        yield from _selected(path) if _is_recipe(path) else originals([path], DecodeLimits(), storage)


def _selected(path: str) -> Iterator[Any]:
    from tokenmill.commands import make_chain
    from tokenmill.pipelines.tokenizer_recipe_data import selected_originals
    from tokenmill.recipe import load_recipe

    return selected_originals(make_chain(load_recipe(path), set(), quiet=True))


def _is_recipe(path: str) -> bool:
    return "://" not in path and path.endswith((".yaml", ".yml"))


def _options(options: argparse.Namespace) -> dict[str, Any]:
    import yaml

    found = {"device": options.device} if options.device else {}
    for text in options.overrides:
        name, separator, value = text.partition("=")
        if not separator:
            raise RecipeError(f"{text}: an option of the tokenizer is option=value")
        found[name] = yaml.safe_load(value)
    return found


def _sides(text: str) -> tuple[int, ...]:
    sides = [int(one) if one.strip().isdecimal() else 0 for one in text.split(",")]
    if min(sides) < _LEAST_SIDE_PX or max(sides) > 4096:
        raise argparse.ArgumentTypeError(f"sizes are whole numbers from {_LEAST_SIDE_PX} to 4096, found {text!r}")
    return tuple(dict.fromkeys(sides))
