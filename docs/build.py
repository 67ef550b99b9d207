"""Make the picture in the README: a report on the project's own scenes alone, photographed by a headless browser.

    python docs/build.py [--out FOLDER]

Runs the demo's recipe with the source `scenes` only (nothing third-party may stand in the docs), then photographs its
report with Debian's chromium. Resumes like every run; the folder keeps the data and the trained model.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
          "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo-out/docs"), help="folder of the run")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    options = parser.parse_args()
    report = run_on_scenes(options.out, options.overrides)
    screenshot(report, ROOT / "docs" / "report.png")
    return 0


def run_on_scenes(out: Path, overrides: list[str]) -> Path:
    """Run every stage on the scenes and return the path of the report."""
    from tokenmill.demo.assemble import assemble

    data = assemble(out / "data")
    recipe = yaml.safe_load((ROOT / "pipelines/recipes/demo.yaml").read_text())
    recipe["root"] = str(out / "run")
    recipe["sources"] = {"scenes": recipe["sources"]["scenes"] | {"url": str(data.scenes)}}
    recipe["plan"]["mix"] = {}
    path = out / "scenes.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    subprocess.run([sys.executable, "-m", "tokenmill.cli", "run", str(path), *overrides], check=True)
    return next((out / "run" / "reports").glob("*.html"))


def screenshot(page: Path, target: Path, width: int = 1200, height: int = 2600) -> None:
    """Photograph a page; raises SystemExit where no browser is installed."""
    browser = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit("no browser found: install Debian's chromium, then run this again")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *_FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}",
                   f"--screenshot={target}", page.resolve().as_uri()]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
    picture = Image.open(target).convert("RGB")
    picture.quantize(256, kmeans=1).save(target, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
