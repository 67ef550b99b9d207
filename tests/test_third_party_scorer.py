"""A scorer of another package, built as a wheel and put beside tokenmill, is used by its name in a recipe."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import polars as pl
import pytest
from tests import tiny

from tokenmill.pipelines.decode_image import decode_image

PACKAGE = Path(__file__).parent / "third_party_scorer"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Build the package's wheel by its own build backend and unpack it, as an installer does."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(PACKAGE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=folder / "source", check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def _tokenmill(arguments: list[str], site: Path | None) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(site or ""), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "tokenmill.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def _recipe(folder: Path) -> Path:
    tiny.write_data(folder / "data")
    scorers = {"resolution": {}, "warmth": {"gain": 2.0, "when": "min_side_px >= 48"}}
    changes = {
        "filter.image.scorers": scorers,
        "filter.image.rules": {"warm": "warmth >= 10"},
        "filter.image.carry": [],
    }
    changes["filter.image.duplicates"] = None
    changes["filter.video.scorers"] = {
        "resolution": {},
        "flicker": {"when": "min_side_px >= 32"},
        "warmth": {"frames": 2},
    }
    changes["filter.video.rules"] = {"steady": "flicker < 64"}
    path = folder / "recipe.yaml"
    return tiny.write_recipe(
        path, folder / "data", str(folder / "root"), changes, sources=["scenes", "photos", "clips"]
    )


def test_scorer_of_a_separate_package_scores_and_selects_by_its_name_in_a_recipe(tmp_path, installed):
    recipe = _recipe(tmp_path)
    done = _tokenmill(["run", str(recipe), "--until", "select"], installed)
    assert done.returncode == 0, done.stderr
    clips = pl.concat(pl.read_parquet(path) for path in _tables(tmp_path, "score/clips", "flicker"))
    assert clips.height == 2
    assert (clips["flicker"] > 0).all()
    scored = pl.concat(
        pl.read_parquet(path)
        for source in ("scenes", "photos")
        for path in _tables(tmp_path, f"score/{source}", "warmth")
    )
    assert scored.height == 16  # 12 scenes, 4 photos; two of them are none
    photo = decode_image((tmp_path / "data" / "photos" / "photo.0.png").read_bytes(), max_pixels=10**6)
    red, _, blue = photo.astype(float).mean((0, 1))
    (value,) = scored.filter(pl.col("key") == "photo.0.png")["warmth"]
    assert value == pytest.approx(2 * (red - blue), rel=1e-5)
    selected = pl.concat(
        pl.read_parquet(path) for source in ("scenes", "photos") for path in _tables(tmp_path, f"select/{source}", "")
    )
    warm = set(scored.filter(pl.col("warmth") >= 10)["key"])
    assert set(selected.filter("keep")["key"]) == warm
    assert 0 < len(warm) < 14


def test_recipe_that_names_a_scorer_whose_package_is_missing_is_refused_with_what_is_allowed(tmp_path):
    done = _tokenmill(["run", str(_recipe(tmp_path)), "--until", "select"], None)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "'warmth'" in line and "resolution" in line


def _tables(folder: Path, source: str, scorer: str) -> list[Path]:
    found = []
    for config in sorted((folder / "root" / source).glob("*/config.json")):
        if not scorer or f'"{scorer}"' in config.read_text():
            found += sorted(config.parent.glob("*.parquet"))
    return found
