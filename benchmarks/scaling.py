"""How well does a stage scale from one worker to two, and what does handing a unit to Ray cost?

    python benchmarks/scaling.py [--units N] [--pictures-per-unit N] [--rounds N] [--json]

The work is the scoring of pictures the project draws itself (decode, text detector: about half a second a unit). Beside
Ray stand bare processes in the same run, round by round: the same worker called in a loop, with nothing around it but a
shared counter that says which unit is next. Both are timed from the first unit's begin to the last one's end.

    efficiency   (Ray with 1 worker ÷ Ray with 2) ÷ (1 bare process ÷ 2 bare processes): 1.0 = scales as well as bare
    overhead     wall time of Ray with 1 worker, less the time inside its units, a unit
    first_unit_s from calling the stage to the begin of its first unit, Ray's own start included
    command_to_first_unit_s
                 the same as a user sees it: from the start of the process `tokenmill score recipe.yaml` to the begin of
                 its first unit, with imports, the recipe, the listing of the source and Ray's start
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from tokenmill.demo.scenes import render, scene
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.draining import Drain
from tokenmill.pipelines.execution import Finished
from tokenmill.pipelines.execution_ray import PassLimits, run_on_ray
from tokenmill.pipelines.jobs import Job, StageWork, Target, Workers
from tokenmill.pipelines.ray_cluster import RayPool, stop_ray
from tokenmill.pipelines.score import score_work
from tokenmill.recipe import check_recipe

SIDE_PX = 320


def recipe_of(root: Path, data: Path, per_unit: int, executor: str = "inline") -> dict[str, Any]:
    """Return the recipe that scores all pictures below `data`."""
    return {
        "root": str(root),
        "execution": {"executor": executor, "unit_rows": per_unit, "decode_threads": 1, "workers": 2},
        "sources": {"photos": {"kind": "images", "url": str(data)}},
        "filter": {"image": {"scorers": {"resolution": {}, "text_coverage": {"longest_side_px": SIDE_PX}}}},
    }


def work_of(root: Path, data: Path, per_unit: int) -> StageWork:
    """Describe the scoring of all pictures below `data`, with an empty root but for the index."""
    recipe = check_recipe(recipe_of(root, data, per_unit), "benchmark")
    chain = Chain(recipe=recipe, options=ChainOptions(quiet=True))
    return score_work(chain.store, chain.passes["image"], chain.pieces["photos"], chain.limits, {})


def jobs_of(work: StageWork) -> list[Job]:
    """Return every unit of a stage as a job."""
    targets = tuple(Target(folder=folder) for folder in work.folders)
    return [Job(unit=unit, targets=targets) for unit in work.units]


def time_bare(work: StageWork, jobs: Sequence[Job], processes: int) -> float:
    """Do the jobs in bare processes that are warm already; returns seconds."""
    context = multiprocessing.get_context("spawn")
    turn, ready = context.Value("i", 1), context.Barrier(processes + 1)
    packed = pickle.dumps((partial(Workers, [work.make_worker]), list(jobs)))
    running = [context.Process(target=_bare, args=(packed, turn, ready)) for _ in range(processes)]
    for process in running:
        process.start()
    ready.wait()
    started = time.perf_counter()
    ready.wait()
    seconds = time.perf_counter() - started
    for process in running:
        process.join()
    return seconds


def _bare(packed: bytes, turn: Any, ready: Any) -> None:
    makers, jobs = pickle.loads(packed)
    worker = makers()
    worker(jobs[0])  # imports and models; not timed, here or there
    ready.wait()
    while True:
        with turn.get_lock():
            index = turn.value
            turn.value += 1
        if index >= len(jobs):
            break
        worker(jobs[index])
    ready.wait()


def time_ray(work: StageWork, jobs: Sequence[Job], workers: int) -> dict[str, float]:
    """Do the jobs on a pool; the first unit of every worker is its warm-up, as in the bare processes."""
    called = time.time()
    limits = PassLimits(unit_timeout_s=600, start_timeout_s=600)
    pool = RayPool(workers=workers, cluster_cpus=2)
    found: list[Finished] = list(run_on_ray(partial(Workers, [work.make_worker]), jobs, pool, limits, Drain(0)))
    assert all(finished.result is not None for finished in found), [finished.error for finished in found]
    in_order = sorted(found, key=lambda finished: finished.started)
    warm = {finished.worker: finished for finished in reversed(in_order)}
    began = max(finished.started + finished.wall_s for finished in warm.values())
    timed = [finished for finished in found if finished.started >= began - 1e-3]
    ended = max(finished.started + finished.wall_s for finished in timed)
    inside = sum(finished.wall_s for finished in timed)
    return {
        "seconds_a_unit": (ended - began) / len(timed),
        "overhead_s": ((ended - began) * workers - inside) / len(timed),
        "first_unit_s": in_order[0].started - called,
    }


def time_command(recipe: Path, root: Path) -> float:
    """Run `tokenmill score` over a root that is ingested; returns seconds from its start to its first unit's begin."""
    called = time.time()
    subprocess.run([sys.executable, "-m", "tokenmill.cli", "score", str(recipe)], check=True, capture_output=True)
    rows = [json.loads(line) for log in root.glob("score/*/*/logs/*.jsonl") for line in log.read_text().splitlines()]
    return min(float(row["started"]) for row in rows if row["kind"] == "unit") - called


def measure(units: int, per_unit: int, rounds: int) -> dict[str, Any]:
    """Draw the pictures, then time bare processes and Ray in turn."""
    logging.getLogger("tokenmill").setLevel(logging.ERROR)
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="tokenmill-") as folder:
        data = Path(folder) / "data"
        data.mkdir()
        for number in range(units * per_unit):
            Image.fromarray(render(scene(number), SIDE_PX)).save(data / f"{number:05d}.png")
        work_of(Path(folder) / "ingested", data, per_unit)
        for number in range(rounds):
            row: dict[str, float] = {}
            for workers in (1, 2):
                for kind in ("bare", "ray"):
                    root = Path(folder) / f"{kind}-{workers}-{number}"
                    shutil.copytree(Path(folder) / "ingested", root)
                    work = work_of(root, data, per_unit)
                    jobs = jobs_of(work)
                    if kind == "bare":
                        row[f"bare_{workers}"] = time_bare(work, jobs, workers) / (len(jobs) - 1)
                    else:
                        found = time_ray(work, jobs, workers)
                        stop_ray()
                        row[f"ray_{workers}"] = found["seconds_a_unit"]
                        row[f"overhead_{workers}"] = found["overhead_s"]
                        row[f"first_unit_{workers}"] = found["first_unit_s"]
            root = Path(folder) / f"command-{number}"
            shutil.copytree(Path(folder) / "ingested", root)
            recipe = Path(folder) / f"command-{number}.yaml"
            recipe.write_text(yaml.safe_dump(recipe_of(root, data, per_unit, "ray")))
            row["command_to_first_unit"] = time_command(recipe, root)
            rows.append(row)
    return {"units": units, "pictures_per_unit": per_unit, "rounds": rounds, **_summary(rows)}


def _summary(rows: Sequence[dict[str, float]]) -> dict[str, Any]:
    middle = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    bare, ray = ([row[f"{kind}_1"] / row[f"{kind}_2"] for row in rows] for kind in ("bare", "ray"))
    return {
        "speedup_bare": round(statistics.median(bare), 3),
        "speedup_ray": round(statistics.median(ray), 3),
        "efficiency": round(statistics.median(r / b for r, b in zip(ray, bare, strict=True)), 3),
        "ray_over_bare_1_worker": round(statistics.median(row["ray_1"] / row["bare_1"] for row in rows), 3),
        "overhead_ms_a_unit": round(1000 * middle["overhead_1"], 1),
        "first_unit_s": round(middle["first_unit_1"], 2),
        "command_to_first_unit_s": round(middle["command_to_first_unit"], 2),
        "seconds_a_unit": {name: round(middle[name], 4) for name in ("bare_1", "bare_2", "ray_1", "ray_2")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=24)
    parser.add_argument("--pictures-per-unit", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.units, options.pictures_per_unit, options.rounds)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"1 → 2: bare ×{found['speedup_bare']}, Ray ×{found['speedup_ray']}: efficiency {found['efficiency']}")
    print(f"overhead {found['overhead_ms_a_unit']} ms a unit; first unit after {found['first_unit_s']} s")
    print(f"from the command to its first unit {found['command_to_first_unit_s']} s")


if __name__ == "__main__":
    main()
