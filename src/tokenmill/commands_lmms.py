"""`tokenmill evaluate lmms`: what lmms-eval found out about a model's understanding, beside the paper's figures."""

from __future__ import annotations

import argparse
import json

from tokenmill.errors import RecipeError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    text = "folders that lmms-eval wrote to (--output_path), or *_results.json files of it"
    parser.add_argument("--results", nargs="+", action="extend", metavar="PATH", help=text)
    text = "exported model: prints the command of lmms-eval that runs the paper's twelve sets"
    parser.add_argument("--model", metavar="MODEL", help=text)
    parser.add_argument("--device", default="cuda", metavar="NAME", help="of that command (cuda)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="of that command (8)")
    parser.add_argument("--out", default="results", metavar="FOLDER", help="of that command (results)")


def evaluate_lmms(options: argparse.Namespace) -> int:
    """Print the table of results, or the command that makes them."""
    from tokenmill.generate.understanding_sets import lmms_command, read_scores, rows_of, table_of

    if not options.results and not options.model:
        raise RecipeError("give --results of lmms-eval, or --model for the command that makes them")
    if not options.results:
        command = lmms_command(options.model, device=options.device, batch_size=options.batch, output=options.out)
        print(json.dumps({"command": command}) if options.json else command)
        return 0
    scores = read_scores(options.results)
    *sets, mean = rows_of(scores)
    print(json.dumps({"sets": sets, "mean": mean}, indent=1) if options.json else table_of(scores))
    return 0
