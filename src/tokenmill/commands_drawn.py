"""`tokenmill export-drawn RECIPE`: the pictures and clips of a job as files in a folder."""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes beside its recipe."""
    parser.add_argument("--job", required=True, metavar="NAME", help="one of the recipe's generate.jobs")
    parser.add_argument("--to", required=True, metavar="FOLDER", help="URL or local path; what is there is left out")
    text = "names of files, such as '{number:05d}/samples/{sample:04d}.{extension}' (default: '{key}.{extension}')"
    parser.add_argument("--names", metavar="PATTERN", help=text)


def export_drawn(options: argparse.Namespace) -> int:
    """Write what a job drew as loose files."""
    from tokenmill.manifests.storage import open_store
    from tokenmill.pipelines.drawing_jobs import read_job
    from tokenmill.pipelines.export_drawn import PATTERN
    from tokenmill.pipelines.export_drawn import export_drawn as export
    from tokenmill.recipe import load_recipe, storage_options

    recipe = load_recipe(options.recipe, options.overrides)
    storage = storage_options(options.storage) if options.storage else recipe.storage
    to = open_store(options.to, storage if "://" in options.to else {})
    done = export(read_job(recipe, options.job), to, options.names or PATTERN)
    if options.json:
        print(json.dumps({"to": options.to, **done.to_json()}, indent=1))
    else:
        print(f"{options.to}: {done.written:,} files written, {done.there:,} there already")
    return 0
