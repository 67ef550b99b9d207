"""The toy world from nothing to a table: `make toyworld`, an hour on two cores, resumable after any kill.

    python -m benchmarks.toyworld.run --out toyworld-out [--quick] [--json] [--table docs/toyworld.md] [key=value …]

Every step is one that anyone would take by hand: raw data is written, then `tokenmill train-tokenizer` and `tokenmill
run` work on it as on any other, then the models draw, answer and go on with clips, and judges read what came out. A
step that is done stands in `toyworld.json` and is passed over while nothing it hangs on has changed; one that was
killed goes on by the stages' own means. The trade-off: steps are compared by settings, not by contents, so whoever
removes files of a finished step removes `toyworld.json` too.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.toyworld.sizes import FULL, QUICK
from benchmarks.toyworld.stages import Toy, recipe_texts
from tokenmill.errors import TokenmillError
from tokenmill.manifests.identity import digest_of

STATE = "toyworld.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something to do once: `identity` is what it hangs on beside the steps before, `minutes` what it takes in full."""

    name: str
    minutes: float
    do: Callable[[], None]
    identity: Any


def main() -> int:
    """Run what is left to do."""
    signal.signal(signal.SIGTERM, end_well)
    options = _parsed()
    size = QUICK if options.quick else FULL
    toy = Toy(out=options.out.absolute(), size=size, overrides=(*size.overrides, *options.overrides))
    toy.out.mkdir(parents=True, exist_ok=True)
    say = say_nothing if options.json else say_on_stdout
    try:
        seconds = walk(toy.out / STATE, steps_of(toy, options.table), say)
    except TokenmillError as error:
        print(f"toyworld: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("toyworld: interrupted; run it again to resume", file=sys.stderr)
        return 1
    found = {"seconds": seconds, "results": json.loads(toy.results.read_text())}
    say(f"done: {sum(seconds.values()) / 60:.1f} minutes of work in all; {toy.results}")
    if options.json:
        print(json.dumps(found))
    return 0


def steps_of(toy: Toy, table: Path | None) -> list[Step]:
    """Return all steps in their order."""
    recipe = recipe_texts(toy)
    asked = toy.size.__repr__()
    steps = [
        Step(name="data", minutes=1.7, do=toy.write_data, identity=asked),
        Step(name="words", minutes=0.1, do=toy.train_words, identity=None),
        Step(name="tokenizer", minutes=5.5, do=toy.train_tokenizer, identity=recipe),
        Step(name="mixed", minutes=23, do=lambda: toy.run("mixed"), identity=recipe),
        Step(name="shuffled", minutes=22.5, do=lambda: toy.run("shuffled"), identity=recipe),
        Step(name="untrained", minutes=0.5, do=lambda: toy.run("untrained"), identity=recipe),
        Step(name="sampler", minutes=0.5, do=toy.choose_sampler, identity=asked),
        *(
            Step(name=f"draw {model}", minutes=0.5, do=lambda model=model: toy.draw(model), identity=asked)  # type: ignore[misc]
            for model in ("mixed", "shuffled", "untrained")
        ),
        Step(name="judge", minutes=4, do=toy.judge, identity=asked),
    ]
    if table is not None:
        steps.append(Step(name="table", minutes=0.2, do=lambda: toy.show(table), identity=str(table)))
    return steps


def walk(state: Path, steps: Sequence[Step], say: Callable[[str], None]) -> dict[str, float]:
    """Do what is not done yet; returns the seconds of each step, summed over all attempts at it."""
    noted: dict[str, Any] = json.loads(state.read_text()) if state.exists() else {}
    before = ""
    for number, step in enumerate(steps):
        before = digest_of([before, step.name, step.identity])
        found = noted.get(step.name, {})
        if found.get("digest") == before and found.get("done"):
            say(f"{_clock()} {step.name}: done before, in {found['seconds']:.0f} s")
            continue
        spent = found.get("seconds", 0.0) if found.get("digest") == before else 0.0
        say(f"{_clock()} {step.name}: begins; {_left(steps[number:], noted, steps)}")
        began = time.monotonic()
        try:
            step.do()
            is_done = True
        except BaseException:
            is_done = False
            raise
        finally:
            seconds = spent + time.monotonic() - began
            noted[step.name] = {"digest": before, "seconds": round(seconds, 1), "done": is_done}
            _publish(state, noted)
        say(f"{_clock()} {step.name}: done in {seconds:.0f} s")
    return {step.name: noted[step.name]["seconds"] for step in steps}


def _left(rest: Sequence[Step], noted: dict[str, Any], steps: Sequence[Step]) -> str:
    """Tell how long the rest will take, by how long what is done took beside what was expected of it."""
    done = [step for step in steps if noted.get(step.name, {}).get("done") and step not in rest]
    expected = sum(step.minutes for step in done)
    took = sum(noted[step.name]["seconds"] for step in done) / 60
    pace = took / expected if expected > 5 else 1.0
    return f"some {sum(step.minutes for step in rest) * pace:.0f} minutes left"


def _publish(state: Path, noted: dict[str, Any]) -> None:
    staged = state.with_name(f"{state.name}.writing")
    staged.write_text(json.dumps(noted, indent=1))
    staged.replace(state)


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("toyworld-out"), help="folder of data, tokens, models, results"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny size that shows that all steps work, and no more")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument("--table", type=Path, help="write the table between this file's markers")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="of recipes/toyworld.yaml")
    return parser.parse_args()


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def end_well(number: int, frame: FrameType | None) -> None:
    """Turn SIGTERM into an orderly end, as the commands of tokenmill do."""
    raise KeyboardInterrupt


def say_on_stdout(text: str) -> None:
    """Tell a line."""
    print(text, flush=True)


def say_nothing(text: str) -> None:
    """Keep stdout for JSON alone."""


if __name__ == "__main__":
    sys.exit(main())
