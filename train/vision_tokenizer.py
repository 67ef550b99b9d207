"""Train a small Emu3VQVAE, resumably, and export it: `python -m tokenmill.train.vision_tokenizer RECIPE --out DIR`.

One thread by default: on busy cores two threads wait for each other (measured: 14 s a step instead of 0.5).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenmill.errors import TokenmillError


def main(arguments: Sequence[str] | None = None) -> int:
    """Train or export; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not (options.export and options.to) and not (options.recipe and options.out):
        parser.error("give RECIPE and --out to train, or --export and --to")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        return _export(options) if options.export else _train(options)
    except TokenmillError as error:
        logging.getLogger(__name__).error("%s", error)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tokenmill.train.vision_tokenizer", description=__doc__)
    parser.add_argument("recipe", type=Path, nargs="?", help="YAML recipe, such as train/recipes/vision_tokenizer.yaml")
    parser.add_argument("--out", type=Path, help="run folder; a checkpoint in it is resumed")
    parser.add_argument("--photographs", nargs="*", help="`packages` or folders, in place of the recipe's")
    parser.add_argument("--steps", type=int, help="in place of the recipe's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--export", type=Path, metavar="RUN", help="write the averaged weights of a run and stop")
    parser.add_argument("--to", type=Path, metavar="DIR", help="where --export writes")
    return parser


def _train(options: argparse.Namespace) -> int:
    import torch

    from tokenmill.train.vision_recipe import load_recipe
    from tokenmill.train.vision_run import VisionRun, train
    from tokenmill.train.vision_sources import load_pool

    torch.set_num_threads(options.threads)
    given = {"photographs": options.photographs, "steps": options.steps}
    recipe = load_recipe(options.recipe, **{name: value for name, value in given.items() if value is not None})
    train(VisionRun(recipe, load_pool(recipe)), options.out)
    return 0


def _export(options: argparse.Namespace) -> int:
    from tokenmill.train.vision_export import export_run

    figures = export_run(options.export, options.to)
    logging.getLogger(__name__).info("%s", {name: value for name, value in figures.items() if name != "recipe"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
