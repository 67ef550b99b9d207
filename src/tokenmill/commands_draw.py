"""`tokenmill draw MODEL PROMPT…`: pictures and clips from text, with their ids, an index and a contact sheet."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokenmill.commands_model import Told, check_counts, drawing_arguments, model_arguments, opened, sampling_of
from tokenmill.errors import RecipeError

if TYPE_CHECKING:
    from tokenmill.generate.drawn_files import Drawn
    from tokenmill.generate.drawn_folder import DrawnFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    model_arguments(parser)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="what to draw")
    parser.set_defaults(more="prompts")
    text = "more prompts: a line each, or .jsonl with prompt, negative, seed, samples, height, width, seconds, fps"
    parser.add_argument("--prompts", dest="prompt_files", action="append", default=[], metavar="FILE", help=text)
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="of each prompt (default: 1)")
    parser.add_argument("--size", metavar="HxW", help="pixels, height first")
    parser.add_argument("--aspect", metavar="W:H", help="such as 16:9, instead of a size (default: 1:1)")
    text = "pixels, with --aspect: 262144 or 512x512 (default: the largest that the model was trained on)"
    parser.add_argument("--area", metavar="N", help=text)
    parser.add_argument("--seconds", type=float, metavar="S", help="draw clips, so long to the nearest code")
    parser.add_argument("--frames", type=int, metavar="N", help="draw clips of so many frames")
    parser.add_argument("--fps", type=float, metavar="X", help="of clips (default: 24)")
    text = "TrueType file for the contact sheet's captions; absent: Pillow's own, which has ASCII alone"
    parser.add_argument("--font", metavar="FILE", help=text)
    drawing_arguments(parser)


def draw(options: argparse.Namespace) -> int:
    """Draw what is not there yet, and tell what there is."""
    check_counts(options, "samples", "batch-size")
    from tokenmill.generate.canvas import Shape, parse_area, parse_aspect, parse_size
    from tokenmill.generate.contact_sheet import MOST_TILES
    from tokenmill.generate.prompt_file import AskedPrompt, read_prompts

    sampling = sampling_of(options)
    shape = Shape(
        size=options.size and parse_size(options.size),
        aspect=options.aspect and parse_aspect(options.aspect),
        area=options.area and parse_area(options.area),
        frames=options.frames,
        seconds=options.seconds,
        fps=options.fps,
    )
    prompts = [AskedPrompt(prompt=text, where=f"prompt {number}") for number, text in enumerate(options.prompts, 1)]
    prompts += [one for path in options.prompt_files for one in read_prompts(path)]
    if not prompts:
        raise RecipeError("nothing to draw: give a prompt, or --prompts FILE")
    studio = opened(options)
    defaults = {"negative": options.negative, "seed": options.seed, "samples": options.samples}
    asked = [one.asked(shape, studio.canvas, **defaults) for one in prompts]
    folder, told = studio.folder(options.out), Told(quiet=options.json)
    shown: dict[int, Drawn] = {}

    def keep(index: int, drawn: Drawn) -> None:
        if index < MOST_TILES:
            shown[index] = drawn

    share = studio.draw_asked(asked, sampling, keep, folder=folder, progress=told)
    told.end()
    rows = studio.rows(asked, sampling, folder)
    sheet = write_sheet(folder, [shown[index] for index in sorted(shown)], len(rows), options.font)
    report = {"out": options.out, "found": share.found, "drawn": share.drawn, "sheet": sheet, "pictures": rows}
    tell(report, as_json=options.json)
    return 0


def write_sheet(folder: DrawnFolder, drawn: Sequence[Drawn], total: int, font: str | None) -> dict[str, Any]:
    """Write the contact sheet of a call; returns its name and what it could not show."""
    from itertools import groupby

    from tokenmill.generate.contact_sheet import Strip, contact_sheet
    from tokenmill.generate.drawn_folder import identity_of
    from tokenmill.manifests.identity import digest_of

    strips = [
        Strip(caption=prompt, samples=[one.frames for one in group])
        for prompt, group in groupby(drawn, key=lambda one: str(one.about["prompt"]))
    ]
    sheet = contact_sheet(strips, font)
    name = f"sheet-{digest_of([identity_of(one.about) for one in drawn])[:8]}.png"
    folder.put(name, sheet.data)
    return {"file": name, "left_out": total - sheet.tiles, "letters_missing": sheet.letters_missing}


def tell(report: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what was drawn: files on stdout, what there is to note on stderr."""
    if as_json:
        print(json.dumps(report, indent=1))
        return
    for row in report["pictures"]:
        grid = "×".join(map(str, row["grid"]))
        clip = f", {row['frames']} frames, {row['fps']:g} fps" if "frames" in row else ""
        print(f"{row['file']}  {grid} codes{clip}, seed {row['seed']}")
        for note in row.get("notes", ()):
            print(f"tokenmill: {row['file']}: {note}", file=sys.stderr)
    sheet = report["sheet"]
    if sheet["letters_missing"]:
        missing = sheet["letters_missing"]
        print(f"tokenmill: the sheet's font lacks {missing} letters of the prompts; give --font FILE", file=sys.stderr)
    if sheet["left_out"]:
        print(f"tokenmill: {sheet['left_out']} more are not on the contact sheet", file=sys.stderr)
    print(f"{report['out']}: {report['drawn']} drawn, {report['found']} were there; {sheet['file']} shows them")
