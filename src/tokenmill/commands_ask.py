"""`tokenmill ask MODEL PICTURE…`: what a model sees on pictures and clips, or its answer to a question."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from tokenmill.commands_model import answering_arguments, check_counts, model_arguments, opened, sampling_of
from tokenmill.errors import RecipeError, RunError, SampleError, TokenmillError

if TYPE_CHECKING:
    from tokenmill.generate.answering import Answering
    from tokenmill.studio import Studio


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    model_arguments(parser)
    text = "picture, clip or folder of frames (with --fps), URL or local path; none: the question alone"
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help=text)
    parser.set_defaults(more="pictures")
    parser.add_argument("--question", default="", metavar="TEXT", help="absent: the model says what it sees")
    parser.add_argument("--frames", type=int, default=8, metavar="N", help="of a clip that are shown, at most (8)")
    parser.add_argument("--fps", type=float, metavar="X", help="rate of a folder of frames")
    answering_arguments(parser)


def ask(options: argparse.Namespace) -> int:
    """Answer for every picture; exit 1 if some could not be shown."""
    check_counts(options, "batch-size", "frames", "max-new")
    if not options.pictures and not options.question.strip():
        raise RecipeError("nothing to answer: give a picture or a clip, or --question")
    sampling = sampling_of(options, guidance=1.0)
    studio = opened(options)
    if not options.pictures:
        chat = studio.conversation(system=options.system, max_new=options.max_new, sampling=sampling, seed=options.seed)
        rows = [{"answer": chat.say(options.question)}]
    else:
        rows = list(_answers(studio, options))
    if options.json:
        print(json.dumps({"question": options.question, "answers": rows}, indent=1))
    return 1 if any("error" in row for row in rows) else 0


def _answers(studio: Studio, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row a picture, telling each batch as it is answered."""
    from tokenmill.generate.answering import Answering

    model = studio.model
    answering = Answering(
        model=model.model, vision=model.vision, picture_area=model.area("image"), clip_area=model.area("video"),
        fps=None, max_new=options.max_new, temperature=options.temperature, top_k=options.top_k,
    )  # fmt: skip
    waiting = iter(options.pictures)
    while batch := list(islice(waiting, options.batch_size)):
        for row in _batch(studio, answering, batch, options):
            if not options.json:
                _tell(row, many=len(options.pictures) > 1)
            yield row


def _batch(
    studio: Studio, answering: Answering, places: Sequence[str], options: argparse.Namespace
) -> list[dict[str, Any]]:
    from tokenmill.captions.captioner import Request

    questions = []
    rows: dict[int, dict[str, Any]] = {}
    for number, place in enumerate(places):
        try:
            given = studio.given_media(place, frames=options.frames, fps=options.fps)
        except (RunError, RecipeError) as error:
            rows[number] = {"picture": place, "error": str(error).removeprefix(f"{place}: ")}
            continue
        asked = Request(
            index=number, sample={}, prompt=options.question, system=options.system, frames=given.frames,
            seconds=given.seconds, seed=options.seed,
        )  # fmt: skip
        questions.append(answering.question(asked))
    for answer in answering.answers(questions) if questions else ():
        if isinstance(answer.error, SampleError | TokenmillError):
            rows[answer.index] = {"picture": places[answer.index], "error": str(answer.error)}
        else:
            told: dict[str, Any] = {"answer": answer.texts[0], "is_whole": answer.finish_reason == "stop"}
            rows[answer.index] = {"picture": places[answer.index], **told}
    return [rows[number] for number in range(len(places))]


def _tell(row: dict[str, Any], *, many: bool) -> None:
    if "error" in row:
        print(f"tokenmill ask: {row['picture']}: {row['error']}", file=sys.stderr)
        return
    cut = "" if row["is_whole"] else " … (cut off by --max-new)"
    print(f"{row['picture']}: {row['answer']}{cut}" if many else f"{row['answer']}{cut}", flush=True)
