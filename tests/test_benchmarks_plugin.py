"""A benchmark of another package is drawn by the name of its entry point, with nothing but one class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.drawn_benchmarks import SIZE, export_model, names_below

from tokenmill.cli import main

MODULE = '''
from dataclasses import dataclass
from tokenmill.pipelines.benchmarks.benchmark import Asked, Output, Prompts, Score


@dataclass(frozen=True, kw_only=True)
class Squares:
    """Two pictures side by side of every line."""

    least: int = 1
    title, is_video, guidance, scored, endings = "Squares", False, 1.0, "here", (".lines",)
    paper = {"theirs": {"score": 2.0}}

    def prompts(self, files):
        lines = [line for line in files[0].text.splitlines() if len(line) >= self.least]
        return Prompts(
            asked=tuple(
                Asked(name=line, prompt=line, outputs=(Output(file=f"here/{n}.png", samples=(0, 1)),))
                for n, line in enumerate(lines)
            )
        )

    def scores(self, files):
        return [Score(measure="score", value=float(files[0].text))]
'''


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """Put a package with an entry point beside tokenmill, as an installer does."""
    site: Path = tmp_path / "site"
    (site / "squares-1.dist-info").mkdir(parents=True)
    (site / "squares_of_lines.py").write_text(MODULE)
    (site / "squares-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: squares\nVersion: 1\n")
    named = "[tokenmill.benchmarks]\nsquares = squares_of_lines:Squares\n"
    (site / "squares-1.dist-info" / "entry_points.txt").write_text(named)
    monkeypatch.syspath_prepend(str(site))
    return site


def test_benchmark_of_another_package_is_drawn_and_read(installed, tmp_path, capsys):
    model = export_model(tmp_path / "model")
    (tmp_path / "x.lines").write_text("one\n.\ntwo\n")
    words = ["--model", str(model), "--prompts", f"{tmp_path}/x.lines", "--out", f"{tmp_path}/out", *SIZE]
    assert main(["evaluate", "squares", "least=3", *words]) == 0
    assert names_below(tmp_path / "out" / "here") == ["0.png", "1.png"]
    (tmp_path / "result").write_text("1.25")
    capsys.readouterr()
    assert main(["evaluate", "squares", "--results", f"{tmp_path}/result", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["value"], row["paper"]) == (1.25, {"theirs": 2.0})
    assert main(["evaluate", "squares", "most=3", *words]) == 2
    assert "unknown setting 'most'; allowed: least" in capsys.readouterr().err
