"""`tokenmill chat MODEL`: a conversation line by line, with pictures and clips shown and drawn in it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tokenmill.commands_model import answering_arguments, check_counts, model_arguments, opened, sampling_of
from tokenmill.errors import RecipeError, TokenmillError

if TYPE_CHECKING:
    from tokenmill.studio import Chat

_HELP = """\
/image PATH     show a picture with the next question     /clip PATH    show a clip
/draw PROMPT    draw a picture, which is then talked of    /reset        begin anew
/save FILE      write what was said as JSON                /quit         end (or end of input)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    model_arguments(parser)
    answering_arguments(parser)
    text = "folder for what /draw draws (default: drawings)"
    parser.add_argument("--out", default="drawings", metavar="FOLDER", help=text)


def chat(options: argparse.Namespace) -> int:
    """Talk until the input ends; exit 1 if a line of piped input could not be done."""
    check_counts(options, "batch-size", "max-new")
    sampling = sampling_of(options, guidance=1.0)
    studio = opened(options)
    talk = studio.chat(system=options.system, max_new=options.max_new, sampling=sampling, seed=options.seed)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print(
            f"{studio.model.name}, {studio.model.context:,} ids of context. /help lists what there is beside talking."
        )
    session = _Session(talk, options.out, options.seed, as_json=options.json)
    failed = session.run(sys.stdin, prompt="> " if is_terminal else "")
    return 1 if failed and not is_terminal else 0


class _Session:
    """Reads lines and does what they say."""

    def __init__(self, talk: Chat, out: str, seed: int, *, as_json: bool) -> None:
        self._talk, self._out, self._seed, self._as_json = talk, out, seed, as_json
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": self._show,
            "/clip": self._show,
            "/draw": self._draw,
            "/save": self._save,
            "/reset": lambda _: talk.conversation.reset(),
            "/help": lambda _: print(_HELP),
        }

    def run(self, lines: IO[str], prompt: str) -> int:
        """Go on until the input ends; returns how many lines could not be done."""
        failed = 0
        while True:
            print(prompt, end="", flush=True)
            line = lines.readline()
            if not line or line.strip() == "/quit":
                return failed
            try:
                self._do(line.strip())
            except TokenmillError as error:
                failed += 1
                print(f"tokenmill chat: {error}", file=sys.stderr, flush=True)

    def _do(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if not line:
            return
        if word in self._commands:
            self._commands[word](rest.strip())
        elif word.startswith("/"):
            raise RecipeError(f"no command {word}; there are {', '.join(self._commands)}, /quit")
        else:
            self._say(line)

    def _say(self, text: str) -> None:
        if self._as_json:
            print(json.dumps({"question": text, "answer": self._talk.say(text)}), flush=True)
            return
        self._talk.say(text, on_text=lambda piece: print(piece, end="", flush=True))
        print(flush=True)

    def _show(self, path: str) -> None:
        if not path:
            raise RecipeError("names no file: /image PATH, /clip PATH")
        shown = self._talk.show(path)
        self._tell({"shown": shown.name, "grid": list(shown.codes.shape)}, f"[{shown.name} is shown]")

    def _draw(self, prompt: str) -> None:
        drawn = self._talk.draw(prompt, seed=self._seed, out=self._out)
        file = self._talk.studio.file_of(drawn, self._out)
        self._tell({"drawn": file}, f"[{file}]")

    def _save(self, path: str) -> None:
        if not path:
            raise RecipeError("names no file: /save FILE")
        try:
            Path(path).write_text(json.dumps(self._talk.conversation.transcript(), indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            raise RecipeError(f"/save {path}: {error.strerror}") from error

    def _tell(self, value: dict[str, object], text: str) -> None:
        print(json.dumps(value) if self._as_json else text, flush=True)
