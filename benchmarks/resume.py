"""How long is it from the start of a process to the first batch, wherever in an epoch it resumes?

    python benchmarks/resume.py [--samples N] [--rounds N] [--json]

A fresh process each time: it imports what the loader needs, opens the plan, takes the state of a checkpoint at 1 %,
50 % or 99 % of the epoch, and gives the first step. Beside it a process that does the imports alone. Rounds go through
all four in turn; once on the local disk, once on an S3 server on loopback (moto). CPU seconds of the process are told
too, since the clock also counts what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

SHARES = (0.01, 0.5, 0.99)
CONTEXT = 5_120
GLOBAL_PACKS = 16
IMPORTS = "imports"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the plan lies, and how to get there."""

    root: str
    options: dict[str, Any]
    plan: str = ""

    def __str__(self) -> str:
        return json.dumps({"root": self.root, "options": self.options, "plan": self.plan})


def child(what: str, place: Place) -> None:
    """Do what is measured: the imports, and for a share of the epoch the first step from there; says so by a line."""
    from tokenmill.manifests.plans import open_plan
    from tokenmill.manifests.storage import open_store
    from tokenmill.tokenize.vocabulary import build_vocabulary
    from tokenmill.train.loader import PlanLoader

    tokens = 0
    if what != IMPORTS:
        plan = open_plan(open_store(place.root, place.options), place.plan)
        loader = PlanLoader(plan, build_vocabulary(plan.description["vocabulary"]), global_packs=GLOBAL_PACKS)
        state = loader.state(int(float(what) * (loader.steps_per_epoch - 1))).to_json()
        start = loader.step_of(state)
        steps = loader.steps(start, loader.steps_per_epoch)
        tokens = next(steps).num_tokens
    print(json.dumps({"tokens": tokens, "cpu_s": time.process_time()}), flush=True)
    sys.stdin.read()  # so that the process ends when it was heard, and its end is not measured


def run(what: str, place: Place) -> dict[str, float]:
    """Start a process and wait for its line."""
    started = time.perf_counter()
    command = [sys.executable, __file__, "--child", what, "--place", str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
        process.kill()
    if not line:
        raise RuntimeError(f"the process for {what} ended without its line")
    return {"seconds": seconds, "cpu_s": json.loads(line)["cpu_s"]}


def measure(place: Place, rounds: int) -> dict[str, Any]:
    """Go through imports and places in turn."""
    names = [IMPORTS, *map(str, SHARES)]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for what in names:
        run(what, place)  # warm: page cache, compiled code
    for _ in range(rounds):
        for what in names:
            found[what].append(run(what, place))
    imports = _row(found[IMPORTS])
    rows = {f"{float(name):.0%}": _row(found[name]) for name in names[1:]}
    for row in rows.values():
        row["seconds_beyond_imports"] = row["seconds"] - imports["seconds"]
        row["cpu_s_beyond_imports"] = row["cpu_s"] - imports["cpu_s"]
    return {"imports": imports, "first_batch_at": rows} | {
        f"most_over_least_{unit}": max(row[unit] for row in rows.values()) / min(row[unit] for row in rows.values())
        for unit in ("seconds", "cpu_s")
    }


def _row(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    seconds = [one["seconds"] for one in runs]
    return {
        "seconds": median(seconds),
        "least": min(seconds),
        "most": max(seconds),
        "cpu_s": median(one["cpu_s"] for one in runs),
    }


def write(place: Place, num_samples: int) -> tuple[Place, dict[str, Any]]:
    """Write a source and its plan, in as many windows as a plan of that size gets."""
    from tokenmill.demo.tokens import Amounts, write_token_source
    from tokenmill.manifests.storage import open_store
    from tokenmill.pipelines.plan import write_plan
    from tokenmill.settings_train import PlanSettings
    from tokenmill.tokenize.vocabulary import byte_vocabulary

    store = open_store(place.root, place.options)
    amounts = Amounts(
        images=num_samples * 6 // 10,
        texts=num_samples * 4 // 10,
        side=64,
        text_words=150,
        shards=max(4, num_samples // 250),
    )
    snapshot = write_token_source(store, "made-up", byte_vocabulary(2_048), amounts)
    plan = write_plan(store, [snapshot], PlanSettings(context=CONTEXT, window_documents=1_000))
    told = {"samples": num_samples, "packs": plan.num_packs, "windows": len(plan.windows)}
    return Place(root=place.root, options=place.options, plan=plan.folder.path), told


@contextmanager
def s3_server() -> Iterator[Place]:
    """Run moto's server until the block ends; gives a root in a bucket of it."""
    import boto3
    from storage import running

    with running("-m", "moto.server", "-H", "127.0.0.1", "-p", "PORT") as endpoint:
        options = {"endpoint_url": endpoint, "key": "testing", "secret": "testing"}
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket="benchmark")
        yield Place(root="s3://benchmark/root", options=options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--place", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, Place(**json.loads(options.place)))
        return
    with tempfile.TemporaryDirectory() as folder:
        place, told = write(Place(root=folder, options={}), options.samples)
        found: dict[str, Any] = {"plan": told, "rounds": options.rounds, "local": measure(place, options.rounds)}
    with s3_server() as remote:
        place, told = write(remote, options.samples)
        found["s3"] = measure(place, options.rounds)
    print(json.dumps(found, indent=1)) if options.json else show(found)


def show(found: dict[str, Any]) -> None:
    for where in ("local", "s3"):
        row = found[where]
        print(f"{where}: imports {row['imports']['seconds']:.2f} s")
        for share, first in row["first_batch_at"].items():
            print(f"  first batch at {share}: {first['seconds']:.2f} s, {first['seconds_beyond_imports']:.2f} s beyond")
        print(f"  slowest ÷ fastest place: {row['most_over_least_seconds']:.3f}")


if __name__ == "__main__":
    main()
