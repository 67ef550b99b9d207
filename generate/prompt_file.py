"""Prompts from a file: a line each, or JSON lines whose keys say what differs from the command's own settings.

The keys are those of a drawing job's tables. A wrong line is refused by its number before a model is opened; blank ones
are left out, so a list may be parted into paragraphs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.generate.canvas import Canvas, Shape
from tokenmill.generate.drawing_requests import Asked

_WHOLE = ("seed", "samples", "height", "width")
_NUMBERS = ("seconds", "fps")


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedPrompt:
    """A prompt, and what of it differs from the rest; `where` names it in messages."""

    prompt: str
    where: str
    negative: str | None = None
    seed: int | None = None
    samples: int | None = None
    height: int | None = None
    width: int | None = None
    seconds: float | None = None
    fps: float | None = None

    def asked(
        self, shape: Shape, canvas: Callable[[Shape], Canvas], *, negative: str, seed: int, samples: int
    ) -> Asked:
        """Fill up with the settings of all; raises RecipeError naming the line for a size that can't be."""
        try:
            own = canvas(self._shape(shape))
        except RecipeError as error:
            raise RecipeError(f"{self.where}: {error}") from error
        return Asked(
            prompt=self.prompt,
            canvas=own,
            negative=negative if self.negative is None else self.negative,
            seed=seed if self.seed is None else self.seed,
            samples=samples if self.samples is None else self.samples,
            where=self.where,
        )

    def _shape(self, shape: Shape) -> Shape:
        if (self.height is None) != (self.width is None):
            raise RecipeError("height and width: both or none")
        if self.height is not None and self.width is not None:
            shape = replace(shape, size=(self.height, self.width), aspect=None, area=None)
        if self.seconds is not None:
            shape = replace(shape, seconds=self.seconds, frames=None)
        return shape if self.fps is None else replace(shape, fps=self.fps)


def read_prompts(path: str) -> list[AskedPrompt]:
    """Read a file of prompts, `.jsonl` or one a line.

    Raises:
        RecipeError: it cannot be read, holds none, or a line is not what it should be.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise RecipeError(f"--prompts {path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"--prompts {path}: not a text in UTF-8 (byte {error.start})") from error
    numbered = [(f"{path} line {number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise RecipeError(f"--prompts {path}: holds no prompt")
    read = _of_json if path.endswith((".jsonl", ".ndjson")) else _of_text
    return [read(where, line) for where, line in numbered]


def _of_text(where: str, line: str) -> AskedPrompt:
    return AskedPrompt(prompt=line, where=where)


def _of_json(where: str, line: str) -> AskedPrompt:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise RecipeError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise RecipeError(f'{where}: has no prompt; wants {{"prompt": …}}')
    found: dict[str, Any] = {name: row[name] for name in ("negative", *_WHOLE, *_NUMBERS) if row.get(name) is not None}
    for name, value in found.items():
        kinds = (int,) if name in _WHOLE else (int, float) if name in _NUMBERS else (str,)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise RecipeError(f"{where}: {name} is {value!r}, not a {'text' if kinds == (str,) else 'number'}")
    return AskedPrompt(prompt=row["prompt"], where=where, **found)
