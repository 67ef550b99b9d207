"""The command line: a thin shell over the library, and the only place that prints.

Exit codes: 0 done, 1 the run failed or verify found a fault, 2 the recipe or the arguments are wrong. An error is one
line on stderr; `--debug` adds the traceback. Heavy libraries are imported by the command that needs them, so `--help`
and a wrong recipe answer in under a second.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TypeAlias

from tokenmill.errors import TokenmillError

Command = Callable[[argparse.Namespace], int]
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

STAGES = {
    "ingest": "index the raw files (loose pictures are packed into shards)",
    "score": "cut films into clips, run the scorers that are missing",
    "select": "apply the rules and find duplicates; reads no pixel",
    "filter": "score, then select",
    "caption": "caption what was kept",
    "tokenize": "write the token archives",
    "plan": "decide every pack of the training phase ahead of time",
    "train": "train on the plan, resuming from the newest checkpoint",
    "generate": "draw the recipe's prompts with the trained model",
    "evaluate": "measure the trained model on held-out samples",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = build_parser().parse_args(arguments)
    _set_up_logging(options)
    signal.signal(signal.SIGTERM, _end_well)
    try:
        return _command(options.command)(options)
    except TokenmillError as error:
        if options.debug:
            raise
        print(f"tokenmill {options.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("tokenmill: interrupted; run it again to resume", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = argparse.ArgumentParser(
        prog="tokenmill", description="Raw images, video and text in, an Emu3-style next-token model out."
    )
    from tokenmill import __version__

    parser.add_argument("--version", action="version", version=f"tokenmill {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = _add(commands, "run", "every stage of a recipe, resuming", recipe=True)
    run.add_argument("--until", metavar="STAGE", choices=[*STAGES, "report"], help="stop after this stage")
    for name, text in STAGES.items():
        _add(commands, name, text, recipe=True)
    _add(commands, "status", "progress of a recipe, from the commit records alone", recipe=True)
    _add(commands, "report", "one self-contained HTML file: funnel, histograms, pictures", recipe=True)
    inspect = _add(commands, "inspect", "what a manifest, shard, sample, plan or checkpoint holds")
    inspect.add_argument("path", help="URL or local path")
    inspect.add_argument("--key", help="of a sample in an archive; its picture is written beside")
    verify = _add(commands, "verify", "compare digests, counts and indexes with the archives")
    verify.add_argument("path", help="URL or local path of a stage folder, a plan, a checkpoint or a whole root")
    verify.add_argument("--deep", action="store_true", help="read every byte")
    submit = _add(commands, "submit", "run a stage as a Ray job")
    submit.add_argument("stage", choices=["run", *STAGES, "report"], help="what to run there")
    _recipe_arguments(submit)
    submit.add_argument("--address", required=True, help="of the Ray cluster's job server, http://…:8265")
    submit.add_argument("--no-wait", action="store_true", help="print the job's id and return")
    demo = _add(commands, "demo", "the whole way on real media from installed packages, in some minutes")
    demo.add_argument("--out", default="demo-out", help="folder for data, run and report (default: demo-out)")
    demo.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings of the recipe to replace")
    return parser


def _add(commands: Commands, name: str, text: str, *, recipe: bool = False) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--debug", action="store_true", help="log more, and show the traceback of an error")
    if recipe:
        _recipe_arguments(parser)
        parser.add_argument("--limit", type=int, metavar="N", help="only the first N units of every source")
        parser.add_argument("--retry-failed", action="store_true", help="do units with failed samples again")
    return parser


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings of the recipe to replace")


def _command(name: str) -> Command:
    from tokenmill import commands

    found: Command = getattr(commands, name if name not in STAGES else "stage")
    return found


def _set_up_logging(options: argparse.Namespace) -> None:
    level = logging.DEBUG if options.debug else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("tokenmill").setLevel(level)


def _end_well(number: int, frame: FrameType | None) -> None:
    """Turn SIGTERM into an orderly end: what is in flight is dropped, what was committed stays.

    Not an Exception: a worker in this process must not take it for a failed unit and go on.
    """
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
