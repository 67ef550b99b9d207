"""The command line: a thin shell over the library, and the only place that prints.

Exit codes: 0 done, 1 the run failed or verify found a fault, 2 the recipe or the arguments are wrong. An error is one
line on stderr; `--debug` adds the traceback. Heavy libraries are imported by the command that needs them, so `--help`
and a wrong recipe answer in under a second.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import FrameType, ModuleType
from typing import TypeAlias

from tokenmill import training_estimate
from tokenmill.errors import TokenmillError

Command = Callable[[argparse.Namespace], int]
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_THREADS_S = 5.0  # for threads that are still at work when a command was interrupted
_interrupted: list[bool] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnFile:
    """A command that a file of its own declares (`add_arguments`) and carries out, in a function of its name."""

    module: str
    text: str
    recipe: bool = False
    storage: bool = False

    def opened(self) -> ModuleType:
        """Import the file."""
        return import_module(f"tokenmill.{self.module}")


_OWN_FILES = {
    "draw": OwnFile(module="commands_draw", text="pictures and clips from text, with their ids and a contact sheet"),
    "extend": OwnFile(module="commands_extend", text="make clips longer"),
    "ask": OwnFile(module="commands_ask", text="what a model sees on pictures and clips, or its answer about them"),
    "chat": OwnFile(module="commands_chat", text="talk with a model about pictures, line by line"),
    "evaluate-tokenizer": OwnFile(
        module="commands_tokenizer", text="measure a vision tokenizer on pictures and clips (also: evaluate tokenizer)"
    ),
    "evaluate-benchmark": OwnFile(
        module="commands_benchmark",
        text="draw a benchmark of the field for its own scorer, or read its results (also: evaluate NAME)",
    ),
    "evaluate-lmms": OwnFile(
        module="commands_lmms",
        text="understanding by lmms-eval: its results beside the paper's figures (also: evaluate lmms)",
    ),
    "export-drawn": OwnFile(
        module="commands_drawn",
        text="write what a table of prompts became as loose pictures and clips",
        recipe=True,
        storage=True,
    ),
    "pairs": OwnFile(
        module="commands_pairs",
        text="preference pairs of what was drawn and voted on, as shards of tokens",
        recipe=True,
    ),
}

STAGES = {
    "ingest": "index the raw files (loose pictures are packed into shards)",
    "score": "cut films into clips, run the scorers that are missing",
    "select": "apply the rules and find duplicates; reads no pixel",
    "filter": "score, then select",
    "caption": "caption what was kept",
    "tokenize": "write the token archives",
    "plan": "decide every pack of the training phase ahead of time",
    "train": "train on the plan, resuming from the newest checkpoint",
    "generate": "draw the recipe's prompts, and tables of prompts and questions, with the trained model",
    "evaluate": "measure the trained model on held-out samples",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parse(arguments)
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
        _interrupted.append(True)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def entry() -> None:
    """Run one command and end this process; asked to end, it does so though an engine left a thread behind."""
    code = main()
    if _interrupted:
        last = threading.Timer(_THREADS_S, _end_if_threads_are_left, (code,))
        last.daemon = True
        last.start()
    sys.exit(code)


def _end_if_threads_are_left(code: int) -> None:
    """End at once where only threads that nobody waits for hold the process."""
    if any(not one.daemon and one is not threading.main_thread() for one in threading.enumerate()):
        os._exit(code)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read a command line; overrides may stand before, between and behind the options, which argparse alone refuses."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["evaluate"]:
        given[:2] = _evaluated(given[1:2])
    parser = build_parser(given[0] if given else "")
    options, rest = parser.parse_known_args(given)
    if getattr(options, "more", None) is not None:  # words behind options, which argparse leaves over
        more = [text for text in rest if not text.startswith("-")]
        setattr(options, options.more, [*getattr(options, options.more), *more])
        rest = [text for text in rest if text.startswith("-")]
    late = [text for text in rest if "=" in text and not text.startswith("-")]
    if rest != late or (late and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if late:
        options.overrides = [*options.overrides, *late]
    if getattr(options, "continue_from", None) is not None:
        options.overrides = [*options.overrides, f"plan.continue_from={json.dumps(options.continue_from)}"]
    return options


def _evaluated(named: Sequence[str]) -> list[str]:
    """Return the command that `evaluate NAME` stands for: of a tokenizer, lmms-eval, a benchmark, else of a recipe."""
    if named and named[0] in ("tokenizer", "lmms"):
        return [f"evaluate-{named[0]}"]
    from tokenmill.commands_benchmark import is_benchmark

    return ["evaluate-benchmark" if named and is_benchmark(named[0]) else "evaluate", *named]


def build_parser(asked: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of every command; with `asked`, files of other commands are not imported for their arguments.

    Nine files with 130 arguments cost each start 20 ms otherwise, three times what all the rest does.
    """
    parser = argparse.ArgumentParser(
        prog="tokenmill", description="Raw images, video and text in, an Emu3-style next-token model out."
    )
    from tokenmill import __version__

    parser.add_argument("--version", action="version", version=f"tokenmill {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = _add(commands, "run", "every stage of a recipe, resuming", recipe=True)
    run.add_argument("--until", metavar="STAGE", choices=[*STAGES, "report"], help="stop after this stage")
    stages = {name: _add(commands, name, text, recipe=True) for name, text in STAGES.items()}
    for command in (run, stages["plan"], stages["train"]):
        text = "go on in the middle of a plan with new data: PLAN@STEP or a run (plan.continue_from)"
        command.add_argument("--continue-from", metavar="PLAN@STEP", help=text)
    text = "train on all machines that this file names, over ssh; a line each, HOST [slots=ranks]"
    stages["train"].add_argument("--hostfile", metavar="FILE", help=text)
    _simulate_arguments(stages["plan"])
    training_estimate.add_arguments(stages["train"])
    _add(commands, "status", "progress of a recipe, from the commit records alone", recipe=True)
    _add(commands, "report", "one self-contained HTML file: funnel, histograms, pictures", recipe=True)
    _inspect_parser(commands)
    _index_parser(commands)
    _detokenize_parser(commands)
    verify = _add(commands, "verify", "compare digests, counts and indexes with the archives")
    verify.add_argument("path", help="URL or local path of a stage folder, a plan, a checkpoint or a whole root")
    _storage_argument(verify)
    verify.add_argument("--deep", action="store_true", help="read every byte")
    gc = _add(commands, "gc", "what killed runs and newer results left behind; removes it with --apply")
    _recipe_arguments(gc)
    gc.add_argument("--apply", action="store_true", help="remove it; without this nothing is changed")
    gc.add_argument("--older-than", type=_hours, default=24.0, metavar="HOURS", help="leave what is younger (24)")
    gc.add_argument("--all-snapshots", action="store_true", help="keep every published snapshot")
    gc.add_argument("--old-settings", action="store_true", help="let folders of settings go that the recipe lost")
    gc.add_argument("--old-captions", action="store_true", help="let paid answers go of columns that the recipe lost")
    gc.add_argument("--old-plans", action="store_true", help="let plans go that are not the recipe's, nor any run's")
    takedown = _add(commands, "takedown", "leave samples out for good, and tell which packs and steps had them")
    _recipe_arguments(takedown)
    takedown.add_argument("--keys", action="append", metavar="FILE", help="keys or source/key, one a line")
    takedown.add_argument("--urls", action="append", metavar="FILE", help="URLs as in the metadata, one a line")
    takedown.add_argument("--hashes", action="append", metavar="FILE", help="sha256 or perceptual hashes, one a line")
    takedown.add_argument("--distance", type=int, default=0, metavar="BITS", help="around perceptual hashes (0 to 16)")
    takedown.add_argument("--reason", default="", help="stored with the list")
    takedown.add_argument("--rewrite", action="store_true", help="take their bytes out of what was written, too")
    submit = _add(commands, "submit", "run a stage as a Ray job")
    submit.add_argument("stage", choices=["run", *STAGES, "report"], help="what to run there")
    _recipe_arguments(submit)
    submit.add_argument("--address", required=True, help="of the Ray cluster's job server, http://…:8265")
    submit.add_argument("--no-wait", action="store_true", help="print the job's id and return")
    submit.add_argument("--job-id", metavar="ID", help="name of the job; one that is there already is followed instead")
    submit.add_argument(
        "--env", action="append", default=[], metavar="NAME", help="forward this variable (or PREFIX_*) to the job"
    )
    submit.add_argument("--pip", metavar="FILE", help="requirements that the nodes install first; absent: none")
    submit.add_argument("--until", metavar="STAGE", choices=[*STAGES, "report"], help="of run: stop after this stage")
    submit.add_argument("--limit", type=int, metavar="N", help="only the first N units of every source")
    submit.add_argument("--retry-failed", action="store_true", help="do units with failed samples again")
    _estimate_parser(commands)
    _export_parser(commands)
    for name, own in _OWN_FILES.items():
        _add_own(commands, name, own, is_asked=asked in (None, name))
    _add(commands, "train-tokenizer", "train the vision tokenizer on what was selected, resuming", recipe=True)
    demo = _add(commands, "demo", "the whole way on real media from installed packages, in some minutes")
    demo.add_argument("--out", default="demo-out", help="folder for data, run and report (default: demo-out)")
    demo.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings of the recipe to replace")
    return parser


def _add_own(commands: Commands, name: str, own: OwnFile, *, is_asked: bool) -> None:
    parser = _add(commands, name, own.text)
    if own.recipe:
        _recipe_arguments(parser)
    if own.storage:
        _storage_argument(parser)
    if is_asked:
        own.opened().add_arguments(parser)


def _inspect_parser(commands: Commands) -> None:
    inspect = _add(
        commands, "inspect", "what a manifest, shard, sample, plan or checkpoint holds; how a recipe selects"
    )
    inspect.add_argument("path", help="URL or local path; of a recipe: the funnel of its selection")
    inspect.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings of the recipe to replace")
    _storage_argument(inspect)
    inspect.add_argument("--key", help="of a sample in an archive; its picture is written beside")
    text = "of a plan: this pack's documents as text and pictures, which are written beside"
    inspect.add_argument("--pack", type=int, metavar="N", help=text)
    inspect.add_argument("--step", type=int, metavar="S", help="of a plan: the packs of this optimizer step, from 0 on")
    text = "with --step: packs in a step; absent: that of the runs on this plan"
    inspect.add_argument("--global-packs", type=int, metavar="G", help=text)
    text = "with --step or --pack: where every document comes from (key, URL, licence, shard)"
    inspect.add_argument("--sources", action="store_true", help=text)
    text = "of a recipe: the funnel with another threshold (aesthetic=5.0) or rule ('aesthetic: …'); nothing is written"
    inspect.add_argument("--what-if", action="append", default=[], metavar="RULE=NUMBER", help=text)
    text = "of a recipe: a query over its annotations, in the tables image, video and text"
    inspect.add_argument("--sql", default="", metavar="QUERY", help=text)


def _simulate_arguments(plan: argparse.ArgumentParser) -> None:
    text = "of the plan that is there: what training on it would read, without reading a sample"
    plan.add_argument("--simulate", action="store_true", help=text)
    plan.add_argument("--ranks", type=int, metavar="N", help="with --simulate; absent: train.ranks")
    text = "with --simulate: processes of a DataLoader on each rank; absent: none, the loader's threads"
    plan.add_argument("--workers", type=int, metavar="M", help=text)
    text = "with --simulate: optimizer steps from A to before B; absent: the first 100"
    plan.add_argument("--steps", metavar="A:B", help=text)


def _index_parser(commands: Commands) -> None:
    index = _add(commands, "index-tokens", "make an index for token shards of others, which stay where they are")
    index.add_argument("url", help="URL or local path of a folder of WebDataset .tar files")
    index.add_argument("--root", required=True, help="URL or local path; the index goes to tokenize/SOURCE below it")
    index.add_argument("--source", required=True, metavar="NAME", help="what plans and reports call it")
    text = "as a recipe's tokenize.vocabulary: YAML such as '{name: bytes, codebook_size: 2048}'"
    index.add_argument("--vocabulary", required=True, metavar="YAML", help=text)
    text = "as a recipe's tokenize.vision, for looking at pictures later; absent: nobody knows"
    index.add_argument("--vision", metavar="YAML", help=text)
    text = "setting of the source (codes, text, grid, fps, …: docs/loader.md), as YAML; may be given several times"
    index.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)
    _storage_argument(index)


def _detokenize_parser(commands: Commands) -> None:
    detokenize = _add(commands, "detokenize", "write the picture or clip of a tokenized sample, or all of an archive")
    detokenize.add_argument("shard", metavar="SHARD", help="URL or local path of a token archive (.tar)")
    which = detokenize.add_mutually_exclusive_group(required=True)
    which.add_argument("--key", metavar="K", help="of the sample")
    which.add_argument("--all", action="store_true", help="every sample of the archive")
    text = "a folder (URL or local path), or with --key a file ending in .png or .mp4; default: the current folder"
    detokenize.add_argument("--out", default=".", metavar="FILE|FOLDER", help=text)
    text = "the vision tokenizer, where it is another than the archive's folder names: a name, a folder, or YAML"
    detokenize.add_argument("--vision", metavar="SPEC", help=text)
    _storage_argument(detokenize)


def _estimate_parser(commands: Commands) -> None:
    estimate = _add(commands, "estimate", "measure a few units, tell hours, bytes and money of the whole source")
    _recipe_arguments(estimate)
    estimate.add_argument("--units", type=int, default=2, metavar="N", help="measured of every source (default: 2)")
    estimate.add_argument("--workers", type=int, metavar="N", help="in all, of every stage; absent: the recipe's pools")
    estimate.add_argument("--nodes", type=int, default=1, metavar="N", help="that are paid for (default: 1)")
    estimate.add_argument("--price-per-hour", type=float, metavar="X", help="of one node")
    estimate.add_argument("--gpu-price-per-hour", type=float, metavar="X", help="of one GPU, beside its node")


def _export_parser(commands: Commands) -> None:
    export = _add(commands, "export-clips", "write a recipe's clips as mp4 files; no stage needs them")
    _recipe_arguments(export)
    export.add_argument("--to", required=True, metavar="FOLDER", help="URL or local path; what is there is left out")
    _storage_argument(export)
    export.add_argument("--limit", type=int, metavar="N", help="only the first N clips of every source")
    export.add_argument("--kept", action="store_true", help="only those that were selected")


def _add(commands: Commands, name: str, text: str, *, recipe: bool = False) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--debug", action="store_true", help="log more, and show the traceback of an error")
    if recipe:
        _recipe_arguments(parser)
        parser.add_argument("--limit", type=int, metavar="N", help="only the first N units of every source")
        parser.add_argument("--retry-failed", action="store_true", help="do units with failed samples again")
    return parser


def _storage_argument(parser: argparse.ArgumentParser) -> None:
    text = "how to reach the path, as in a recipe's storage section; may be given several times"
    parser.add_argument("--storage", action="append", default=[], metavar="KEY=VALUE", help=text)


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings of the recipe to replace")


def _hours(text: str) -> float:
    """Read a number of hours, 0 or more."""
    hours = float(text)
    if not 0 <= hours < math.inf:
        raise argparse.ArgumentTypeError(f"hours are a number from 0 on, found {text!r}")
    return hours


def _command(name: str) -> Command:
    file = _OWN_FILES[name].opened() if name in _OWN_FILES else import_module("tokenmill.commands")
    found: Command = getattr(file, "stage" if name in STAGES else name.replace("-", "_"))
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
    entry()
