"""`tokenmill extend MODEL CLIP…`: clips made longer, from their frames or from their stored codes."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from tokenmill.commands_model import check_counts, drawing_arguments, model_arguments, opened, sampling_of
from tokenmill.errors import RecipeError

if TYPE_CHECKING:
    from tokenmill.generate.drawn_files import Drawn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    model_arguments(parser)
    text = "clip, folder of frames (with --fps), or token archive (.tar, with --key); URL or local path"
    parser.add_argument("clips", nargs="*", metavar="CLIP", help=text)
    parser.set_defaults(more="clips")
    parser.add_argument("--key", metavar="K", help="of the sample in a token archive")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what the clips show; absent: nothing is said")
    parser.add_argument("--context-seconds", type=float, metavar="S", help="read of what is there (default: 2)")
    parser.add_argument("--context-frames", type=int, metavar="N", help="the same in frames")
    parser.add_argument("--new-seconds", type=float, metavar="S", help="drawn at a time (default: as the context)")
    parser.add_argument("--new-frames", type=int, metavar="N", help="the same in frames")
    parser.add_argument("--seconds", type=float, metavar="S", help="of the whole (default: once the new ones more)")
    text = "take the clips' frames at this rate; of a folder of frames: the rate they have"
    parser.add_argument("--fps", type=float, metavar="X", help=text)
    drawing_arguments(parser)


def extend(options: argparse.Namespace) -> int:
    """Extend what is not there yet, and tell where the given part ends."""
    check_counts(options, "batch-size")
    if not options.clips:
        raise RecipeError("no clip to extend")
    if any(clip.endswith(".tar") for clip in options.clips) != (options.key is not None):
        raise RecipeError("--key: goes with a token archive (.tar), and one of them needs it")
    from tokenmill.generate.clip_to_extend import Reach, extend_clips
    from tokenmill.generate.drawn_folder import identity_of

    reach = Reach(
        context_seconds=options.context_seconds,
        context_frames=options.context_frames,
        new_seconds=options.new_seconds,
        new_frames=options.new_frames,
        total_seconds=options.seconds,
    )
    sampling = sampling_of(options)
    studio = opened(options)
    given = [
        studio.given_clip(clip, fps=options.fps, key=options.key if clip.endswith(".tar") else None)
        for clip in options.clips
    ]
    folder = studio.folder(options.out)
    drawn: dict[int, str] = {}

    def keep(index: int, one: Drawn) -> None:
        drawn[index] = identity_of(one.about)

    found = extend_clips(
        studio.model, given, reach, sampling, keep, prompt=options.prompt, negative=options.negative, seed=options.seed,
        batch_size=studio.batch_size, folder=folder,
    )  # fmt: skip
    rows = [folder.rows[drawn[index]] for index in range(len(given))]
    _tell({"out": options.out, "found": found, "drawn": len(rows) - found, "clips": rows}, as_json=options.json)
    return 0


def _tell(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=1))
        return
    for row in report["clips"]:
        begun = row["extends"]
        ends = f"{begun['name']} to frame {begun['frames']} ({begun['seconds']:g} s)"
        print(f"{row['file']}  {row['frames']} frames, {row['seconds']:g} s: {ends}, then drawn")
        for note in row.get("notes", ()):
            print(f"tokenmill: {begun['name']}: {note}", file=sys.stderr)
    print(f"{report['out']}: {report['drawn']} drawn, {report['found']} were there")
