"""What scoring holds in memory: neither a chunk of large pictures nor a batch of large texts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml
from PIL import Image

MEASURED = """
import sys
from pathlib import Path
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.recipe import load_recipe
chain = Chain(recipe=load_recipe(sys.argv[1]), options=ChainOptions(quiet=True))
rows = sum(commit.counts.kept for one in chain.snapshots("score") for commit in one.commits)
# Not ru_maxrss: that of a child begins at what its parent held when it was forked.
(peak,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(rows, int(peak) // 1000)
"""


def _measured(folder: Path, sources: dict[str, object], filters: dict[str, object]) -> tuple[int, int]:
    """Score in a child process; returns the rows that were scored and the most megabytes it ever held."""
    recipe = {
        "root": str(folder / "root"),
        "execution": {"executor": "inline", "decode_threads": 1, "unit_rows": 64},
        "sources": sources,
        "filter": filters,
        "tokenize": {"vocabulary": {"name": "bytes"}, "vision": {"name": "scenes"}},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    done = subprocess.run([sys.executable, "-c", MEASURED, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows, megabytes = map(int, done.stdout.split())
    return rows, megabytes


def test_unit_of_large_pictures_holds_the_pixels_of_one_at_a_time(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.linear_gradient("L").resize((4000, 3000)).convert("RGB").save(tmp_path / "first.png", compress_level=1)
    for number in range(16):  # 36 MB of pixels each, 576 MB in all
        (tmp_path / "photos" / f"{number}.png").hardlink_to(tmp_path / "first.png")
    filters = {"image": {"scorers": {"colourfulness": {}, "resolution": {}}}}
    rows, megabytes = _measured(tmp_path, {"photos": {"kind": "images", "url": str(tmp_path / "photos")}}, filters)
    assert rows == 32
    assert megabytes < 600


def test_batch_of_large_texts_is_counted_some_at_a_time(tmp_path):
    (tmp_path / "texts").mkdir()
    line = json.dumps({"text": "lorem ipsum dolor sit amet " * 40_000})  # 1.1 MB; ten of them in one go take 600 MB
    (tmp_path / "texts" / "texts.jsonl").write_text(f"{line}\n" * 10)
    filters = {"text": {"scorers": {"repetition": {}, "minhash": {}}}}
    rows, megabytes = _measured(tmp_path, {"texts": {"kind": "jsonl", "url": str(tmp_path / "texts")}}, filters)
    assert rows == 20
    assert megabytes < 480
