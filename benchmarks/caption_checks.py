"""How often do the checks of captions take a true text for none, and how long do they take?

    python benchmarks/caption_checks.py [--json] [FILE …]

Every line of a file is a text; without files: django's messages in ten languages, Python's manual, captions of the
demo. Whatever is named then is a false alarm, unless the texts do hold refusals and loops. Times are of a caption of
100 words, with a prompt of 25 and a system prompt of 11, the best of many short runs: the machine may be busy.
"""

from __future__ import annotations

import argparse
import json
import timeit
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenmill.captions.checks import judge
from tokenmill.captions.echoes import is_echo
from tokenmill.captions.loops import is_loop
from tokenmill.captions.refusals import is_refusal
from tokenmill.captions.tidying import tidied
from tokenmill.demo.photographs import package_file
from tokenmill.demo.scenes import scene
from tokenmill.demo.text_lines import english, read_catalogue
from tokenmill.demo.wording import captions
from tokenmill.settings_caption import Checks

LANGUAGES = ("de", "fr", "es", "it", "pt", "ru", "ja", "ko", "zh_Hans", "zh_Hant")
PROMPT = (
    "Describe the image in one detailed paragraph, naming objects, colours, their places and the mood. Do not mention \
that this is an image. Known: {caption}"
)
SYSTEM = "You are a careful captioner who describes only what is seen."
CAPTION = """A brown dog with a red collar runs over wet sand near the sea while two children in yellow coats watch from
a wooden pier behind which grey clouds gather and white gulls circle over small boats that rest upside down on trestles
beside nets, ropes and buoys of many colours. An old man mends something on a low stool, his hands busy, his cap pulled
deep over his brow, and far behind him the lighthouse stands white against the darkening sky, its lamp already lit
although the afternoon has hardly begun to fade into evening above the quiet town."""


def installed_texts() -> Iterator[tuple[str, list[str]]]:
    """Yield names and texts that come with packages."""
    yield "demo's captions", [text for number in range(2_000) for text in captions(scene(number))]
    yield "Python's manual", [document["text"] for document in english()]
    package = package_file("django", "__init__.py").parent
    for language in LANGUAGES:
        files = sorted(package.glob(f"c*/**/{language}/LC_MESSAGES/*.mo"))
        messages = [text for path in files for text in read_catalogue(path.read_bytes()).values()]
        yield f"django {language}", sorted({text for message in messages for text in message.split("\0") if text})


def lines_of(paths: list[Path]) -> Iterator[tuple[str, list[str]]]:
    """Yield the lines of files."""
    for path in paths:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        yield path.name, [line for line in lines if line.strip()]


def alarms(texts: list[str]) -> dict[str, Any]:
    """Count what the checks name."""
    checks = Checks()
    found = Counter(
        error.reason for text in texts if (error := judge(tidied(text), prompt_template=PROMPT, checks=checks))
    )
    return {"texts": len(texts), **dict(sorted(found.items()))}


def microseconds(function: Callable[[], object]) -> float:
    """Return the time of a call, the best of 150 runs of 20."""
    return round(min(timeit.repeat(function, number=20, repeat=150)) / 20 * 1e6, 1)


def times() -> dict[str, float]:
    """Time the checks one by one and together."""
    text = tidied(CAPTION)
    plain, english_only = Checks(), Checks(languages=("en",))
    asked = {"prompt_template": PROMPT, "system_template": SYSTEM, "finish_reason": "stop"}
    return {
        "tidied": microseconds(lambda: tidied(CAPTION)),
        "refusal": microseconds(lambda: is_refusal(text)),
        "loop": microseconds(lambda: is_loop(text)),
        "echo": microseconds(lambda: is_echo(text, (PROMPT, SYSTEM))),
        "all": microseconds(lambda: judge(text, checks=plain, **asked)),
        "all, and language": microseconds(lambda: judge(text, checks=english_only, **asked)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    named = lines_of(arguments.files) if arguments.files else installed_texts()
    result: dict[str, Any] = {"alarms": {name: alarms(texts) for name, texts in named}, "microseconds": times()}
    if arguments.json:
        print(json.dumps(result))
        return
    for name, row in result["alarms"].items():
        print(f"{name:24} {row}")
    print(f"{'µs':24} {result['microseconds']}")


if __name__ == "__main__":
    main()
