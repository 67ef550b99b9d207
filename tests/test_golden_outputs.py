"""Golden outputs: a stage whose result changes has to raise its version.

The values stand in `golden_outputs.json`, by stage and version. When a change is meant, raise the stage's `VERSION`
and write them again: `python -m tests.test_golden_outputs`. Floating-point scores are compared to six digits and codes
of the vision tokenizer to 99 %, because another kind of processor may round differently. For the same reason the plan
is not here: its draws follow from the digests of the archives.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests import tiny

from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.recipe import check_recipe
from tokenmill.tokenize.vision import load_vision_tokenizer

GOLDEN = Path(__file__).with_name("golden_outputs.json")
STAGES = ("ingest", "split", "score", "duplicates", "select", "caption", "choose", "tokenize")


def outputs(folder: Path) -> dict[str, Any]:
    """Run every data stage on the tiny recipe and describe what each wrote, with the version that wrote it."""
    tiny.write_data(folder / "data")
    value = tiny.recipe(folder / "data", str(folder / "root"))
    chain = Chain(recipe=check_recipe(value, "tiny"), options=ChainOptions(quiet=True))
    found: dict[str, Any] = {}
    for stage in STAGES:
        snapshots = chain.snapshots(stage)
        version = snapshots[0].folder.config.version
        rows = [_rows(snapshot) for snapshot in snapshots]
        found[stage] = {"version": version, "digest": digest_of(rows)}
    return found


def codes() -> list[int]:
    """Tokenize one scene with the shipped weights."""
    tokenizer = load_vision_tokenizer("scenes")
    picture = tiny.render(tiny.scene(3), 64)
    return [int(code) for code in tokenizer.encode_images(picture[None]).ravel()]


def _rows(snapshot: Snapshot) -> list[Any]:
    """Return a snapshot's tables as rounded values; what depends on encoders and file layout is left out."""
    left_out = {"sha256", "offset", "length", "codes_offset", "text_offset", "json_offset", "json_length"}
    left_out.add("codes_crc32")
    frames = [snapshot.folder.read_rows(commit) for commit in snapshot.commits]
    frame = pl.concat(frames)
    return [_plain(frame.select([c for c in frame.columns if c not in left_out]).rows()), snapshot.folder.source]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, int | str | type(None)) else str(value)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return outputs(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("stage", STAGES)
def test_output_of_a_stage_changes_only_with_its_version(found: dict[str, Any], stage: str) -> None:
    golden = json.loads(GOLDEN.read_text())["stages"][stage]
    assert found[stage] == golden, (
        f"stage {stage} writes something else: raise its VERSION, then write the golden again"
    )


def test_codes_of_the_shipped_tokenizer_are_golden() -> None:
    golden = np.array(json.loads(GOLDEN.read_text())["codes"])
    assert (np.array(codes()) == golden).mean() >= 0.99


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        golden = {"stages": outputs(Path(scratch)), "codes": codes()}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    sys.exit(0)
