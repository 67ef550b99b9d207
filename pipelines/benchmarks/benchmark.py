"""A benchmark of the field: which prompts it asks, where its own scorer looks for what was drawn, how its results read.

A benchmark is one file: pure functions from the text of its prompt files to `Asked` items with the exact file names its
scorer expects, and from its result files to scores. Drawing, resuming and bookkeeping are the same for all
(drawing.py), so none of the five built-in ones has more than 130 lines. A third party adds one by an entry point in the
group `tokenmill.benchmarks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from tokenmill.plugins import allowed_names, build

ENTRY_POINT_GROUP = "tokenmill.benchmarks"
BUILT_IN: Mapping[str, str] = {
    "coco30k": "tokenmill.pipelines.benchmarks.coco30k:Coco30k",
    "dpg-bench": "tokenmill.pipelines.benchmarks.dpg_bench:DpgBench",
    "geneval": "tokenmill.pipelines.benchmarks.geneval:GenEval",
    "t2i-compbench": "tokenmill.pipelines.benchmarks.t2i_compbench:T2ICompBench",
    "vbench": "tokenmill.pipelines.benchmarks.vbench:VBench",
}
_LONGEST_NAME_BYTES = 255  # of a file, on every file system in use


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One file below the folder: a sample, or several as a grid, row by row, two in a row."""

    file: str
    samples: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One prompt.

    Attributes:
        name: what tells it from all others of the benchmark: a line's number, a file's stem, a caption's id.
        outputs: the files to draw.
        beside: texts of other files that the scorer reads.
        row: what else is known of it, such as its category; kept in `asked.jsonl`.
    """

    name: str
    prompt: str
    outputs: tuple[Output, ...]
    beside: Mapping[str, str] = field(default_factory=dict)
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A line or file of which no item could be made."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """All that a benchmark asks, and files to write once beside."""

    asked: tuple[Asked, ...]
    left_out: tuple[LeftOut, ...] = ()
    beside: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFile:
    """A prompt file or a result file, read; `label` is what the command line called it, else where it lies."""

    name: str
    text: str
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One figure of a result, of so many samples (or questions) where that is known."""

    measure: str
    value: float
    count: int | None = None


class Benchmark(Protocol):
    """What the built-in ones and those of third parties have."""

    @property
    def title(self) -> str:
        """Its name as the field writes it."""

    @property
    def is_video(self) -> bool: ...

    @property
    def guidance(self) -> float:
        """With which Emu3's authors drew it (EMU3.md §6)."""

    @property
    def scored(self) -> str:
        """The folder to hand to the scorer, relative to the output folder."""

    @property
    def endings(self) -> tuple[str, ...]:
        """Of its prompt files, where a folder is given."""

    @property
    def paper(self) -> Mapping[str, Mapping[str, float]]:
        """Emu3's figures: name of the variant → measure → value."""

    def prompts(self, files: Sequence[TextFile]) -> Prompts:
        """Read its prompt files; raises RecipeError where they are none of its."""

    def scores(self, files: Sequence[TextFile]) -> list[Score]:
        """Read its scorer's result files; raises RecipeError where they are none."""


def known_benchmarks() -> list[str]:
    """List every name that can be asked for."""
    return allowed_names(BUILT_IN, ENTRY_POINT_GROUP)


def open_benchmark(name: str, settings: Mapping[str, Any] | None = None) -> Benchmark:
    """Build a benchmark by its name; raises RecipeError for a name or setting that is none."""
    return cast(Benchmark, build("benchmark", name, settings or {}, BUILT_IN, ENTRY_POINT_GROUP))


def is_file_name(name: str) -> bool:
    """Say whether a file can be called so: scorers read the prompt off the name, so nothing may be replaced in it."""
    return 0 < len(name.encode()) <= _LONGEST_NAME_BYTES and not set(name) & {"/", "\0"} and name not in (".", "..")


def lines_of(text: str) -> list[str]:
    """Split at ends of lines alone: `splitlines` also cuts at characters that JSON leaves in a text."""
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if not lines[-1] else lines
