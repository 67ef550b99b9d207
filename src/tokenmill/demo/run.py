"""`tokenmill demo`: assembles the data, walks every stage, and says what each one kept, lost and cost.

Takes under ten minutes on two cores the first time and seconds the second; whatever was killed goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tokenmill.commands import ALL_STAGES, make_chain, run_one_stage
from tokenmill.demo.assemble import DemoData, assemble
from tokenmill.errors import RunError
from tokenmill.manifests.storage import open_store
from tokenmill.recipe import Recipe, load_recipe
from tokenmill.stage_rows import describe_row

_STAGE_TEXT = {
    "ingest": "index the raw files, each sample with its bytes' place and digest; pack the loose photographs",
    "split": "cut the clips into scenes",
    "score": "size, colour, sharpness, perceptual hash, text coverage",
    "select": "apply the rules, drop exact and near duplicates",
    "caption": "take the captions the sources bring",
    "tokenize": "turn pictures, clips and text into tokens",
    "plan": "pack documents into sequences, ahead of time",
    "train": "train a small Emu3 with DeepSpeed on two CPU ranks",
    "generate": "draw the prompts, constrained to the grammar",
    "evaluate": "measure held-out loss against unigrams, bigrams and shuffled captions",
    "report": "write one HTML file with all of it",
}
_LEFT_OUT = (
    "Left out, because no package carries weights for them: the LAION aesthetic score (CLIP), optical flow (RAFT), a "
    "captioning model, and the 270M vision tokenizer; the demo uses the 1M one that ships with tokenmill."
)


def run_demo(out: Path, overrides: Sequence[str], *, as_json: bool) -> int:
    """Run the whole demo below `out` and return the exit code."""
    say = _silent if as_json else _say
    began = time.perf_counter()
    say(f"tokenmill demo: raw media → tokens → a trained model that draws, in {out}/")
    data = assemble(out / "data", progress=say)
    rows: list[dict[str, Any]] = [{"stage": "assemble", "seconds": round(time.perf_counter() - began, 2)}]
    say(f"assemble  {rows[0]['seconds']:8.1f} s   {'built ' + ', '.join(data.built) if data.built else 'all there'}")
    recipe = demo_recipe(out, overrides)
    chain = make_chain(recipe, quiet=as_json)
    for stage in ALL_STAGES:
        say(f"\n{stage}: {_STAGE_TEXT[stage]}")
        started = time.perf_counter()
        row = run_one_stage(stage, recipe, chain)
        rows.append({"stage": stage, "seconds": round(time.perf_counter() - started, 2), **row})
        say(describe_row(rows[-1]))
    fates = spoiled_fates(data, chain)
    say("\nspoiled on purpose, and what became of it:")
    for fate in fates:
        say(f"  {fate['what']:<44} {fate['fate']}")
    summary = _summary(out, recipe, rows, fates, time.perf_counter() - began)
    open_store(str(out)).put("demo.json", (json.dumps(summary, indent=1, default=str) + "\n").encode())
    say(f"\n{_LEFT_OUT}\n\ndone in {summary['seconds']:.0f} s")
    say(f"report: {summary['report']}\nmodel:  {summary['model']}")
    if as_json:
        _say(json.dumps(summary, indent=1, default=str))
    return 0


def demo_recipe(out: Path, overrides: Sequence[str]) -> Recipe:
    """Return the demo's recipe, with its data and root below `out`."""
    path = Path(__file__).parents[1] / "pipelines" / "recipes" / "demo.yaml"
    sources = yaml.safe_load(path.read_text())["sources"]
    moved = [f"sources.{name}.url={out}/data/{name}" for name in sources]
    return load_recipe(path, [f"root={out}/run", *moved, *overrides])


def spoiled_fates(data: DemoData, chain: Any) -> list[dict[str, str]]:
    """Look up what the records say about every sample that was spoiled on purpose.

    Raises:
        RunError: one of them came through, or ended otherwise than it must.
    """
    from tokenmill.pipelines.fates import fates_of

    found = fates_of(chain)
    rows = []
    for spoiled in data.spoiled:
        fate = found.get((spoiled.source, spoiled.name), "not found in any table")
        if fate == "kept" and spoiled.twin is not None:  # of two copies either one may be the one that goes
            fate = "kept; its twin: " + found.get((spoiled.source, spoiled.twin), "not found in any table")
        if spoiled.expected not in fate:
            raise RunError(f"{spoiled.source}/{spoiled.name} ({spoiled.what}) should be {spoiled.expected}: {fate}")
        rows.append({"source": spoiled.source, "name": spoiled.name, "what": spoiled.what, "fate": fate})
    return rows


def _summary(
    out: Path, recipe: Recipe, rows: list[dict[str, Any]], fates: list[dict[str, str]], seconds: float
) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 1),
        "stages": rows,
        "spoiled": fates,
        "report": rows[-1]["report"],
        "model": f"{out}/run/checkpoints/{recipe.train.last.run}/export",
        "left_out": _LEFT_OUT,
    }


def _say(text: str) -> None:
    print(text, flush=True)


def _silent(text: str) -> None:
    pass
