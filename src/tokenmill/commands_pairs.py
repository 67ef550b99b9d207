"""`tokenmill pairs RECIPE`: preference pairs as token shards."""

from __future__ import annotations

import argparse
import json

from tokenmill.errors import RecipeError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes beside its recipe."""
    which = parser.add_mutually_exclusive_group(required=True)
    text = "table (JSON lines, CSV, Parquet) of file and votes, of what the recipe's model drew (generate)"
    which.add_argument("--votes", metavar="TABLE", help=text)
    text = "table of prompt, chosen and rejected as {codes, grid} or {ids}: pairs that are tokens already"
    which.add_argument("--table", metavar="TABLE", help=text)
    text = "with --votes: the votes are of what this job drew (generate.jobs), not of the recipe's own prompts"
    parser.add_argument("--job", metavar="NAME", help=text)
    text = "folder for the shards, URL or local path; absent: preferences/… below the root"
    parser.add_argument("--to", metavar="FOLDER", help=text)


def pairs(options: argparse.Namespace) -> int:
    """Write the pairs, unless they are there."""
    from tokenmill.pipelines.pair_archives import pairs_of_table, pairs_of_votes
    from tokenmill.recipe import load_recipe

    if options.job is not None and options.votes is None:
        raise RecipeError("--job: goes with --votes")
    recipe = load_recipe(options.recipe, options.overrides)
    if options.votes is not None:
        made = pairs_of_votes(recipe, options.votes, options.to, options.job)
    else:
        made = pairs_of_table(recipe, options.table, options.to)
    if options.json:
        print(json.dumps(made, indent=1))
        return 0
    lost = ", ".join(f"{reason} {number:,}" for reason, number in made["left_out"].items()) or "nothing"
    print(f"{made['pairs']:,} pairs in {made['folder']}; left out: {lost}")
    return 0
