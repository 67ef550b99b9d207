"""What `draw`, `extend`, `ask` and `chat` share: the model, how ids are drawn, what is told meanwhile."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from tokenmill.errors import RecipeError

if TYPE_CHECKING:
    from tokenmill.generate.sampling import Sampling
    from tokenmill.studio import Studio

_LINE_EVERY_S = 30.0


def model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, and on what it runs."""
    text = (
        "an exported model (checkpoints/RUN/export), the folder of its run, or one of transformers; URL or local path"
    )
    parser.add_argument("model", metavar="MODEL", help=text)
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1 (default: cpu)")
    text = "of the weights: float32, bfloat16, float16 (default: float32)"
    parser.add_argument("--dtype", default="float32", metavar="NAME", help=text)
    text = "at a time; decides about speed and memory alone (default: 8)"
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help=text)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first sample (default: 0)")
    text = "how to reach the model, as in a recipe's storage section; may be given several times"
    parser.add_argument("--storage", action="append", default=[], metavar="KEY=VALUE", help=text)


def drawing_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how codes are drawn, and where the files go."""
    parser.add_argument("--negative", default="", metavar="TEXT", help="what guidance leads away from")
    text = "how far from the negative or unconditional prompt; 1: off, half the work (default: 3)"
    parser.add_argument("--guidance", type=float, default=3.0, metavar="X", help=text)
    text = "draw from so many of the likeliest codes; 0: all (default: 2048)"
    parser.add_argument("--top-k", type=int, default=2048, metavar="N", help=text)
    text = "draw from the likeliest that have this much of the probability; 1: all (default: 1)"
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help=text)
    text = "0: always the likeliest (default: 1)"
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help=text)
    text = "folder for files, ids and index, URL or local path; what is there is not drawn again (default: drawings)"
    parser.add_argument("--out", default="drawings", metavar="FOLDER", help=text)


def answering_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how answers are drawn."""
    text = "what the chat opens with; absent: the sentence of the training's template"
    parser.add_argument("--system", default="", metavar="TEXT", help=text)
    parser.add_argument(
        "--max-new", type=int, default=256, metavar="N", help="ids of an answer, at most (default: 256)"
    )
    text = "0: always the likeliest (default: 0)"
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help=text)
    text = "draw from so many of the likeliest ids; 0: all (default: 0)"
    parser.add_argument("--top-k", type=int, default=0, metavar="N", help=text)


def opened(options: argparse.Namespace) -> Studio:
    """Open the model; raises RecipeError as `open_studio`."""
    from tokenmill.recipe import storage_options
    from tokenmill.studio import open_studio

    return open_studio(
        options.model,
        device=options.device,
        dtype=options.dtype,
        batch_size=options.batch_size,
        storage=storage_options(options.storage),
    )


def sampling_of(options: argparse.Namespace, **replaced: Any) -> Sampling:
    """Return how ids are drawn; raises RecipeError for values that make no sense."""
    from tokenmill.generate.sampling import Sampling

    names = ("top_k", "top_p", "temperature", "guidance")
    found = {name: getattr(options, name) for name in names if hasattr(options, name)}
    return Sampling(**{**found, **replaced})


def check_counts(options: argparse.Namespace, *names: str) -> None:
    """Raise RecipeError where one of the options is below 1."""
    for name in names:
        value = getattr(options, name.replace("-", "_"))
        if value is not None and value < 1:
            raise RecipeError(f"--{name} {value}: has to be at least 1")


class Told:
    """Tells on stderr how far drawing is: a line that moves on a terminal, one every 30 s elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._is_terminal = sys.stderr.isatty()
        self._began = self._told = time.monotonic()
        self._open = False

    def __call__(self, share: Any) -> None:
        """Tell a `Share`."""
        now = time.monotonic()
        wanted = share.asked - share.found
        if self._quiet or not (self._is_terminal or now - self._told >= _LINE_EVERY_S):
            return
        self._told = now
        took = now - self._began
        left_s = took / share.drawn * (wanted - share.drawn)
        rate = f"{share.ids / took:,.0f} ids a second"
        text = f"drawn {share.drawn} of {wanted}, {took / share.drawn:.1f} s each, {rate}, {left_s:,.0f} s left"
        print(f"\r\033[K{text}" if self._is_terminal else text, end="" if self._is_terminal else "\n", file=sys.stderr)
        sys.stderr.flush()
        self._open = self._is_terminal

    def end(self) -> None:
        """Leave the moving line."""
        if self._open:
            print(file=sys.stderr)
