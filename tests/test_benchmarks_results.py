"""Result files in the formats of the benchmarks' own scorers become one table beside the paper's figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.drawn_benchmarks import write_json_lines

from tokenmill.cli import main
from tokenmill.pipelines.benchmarks.vbench import QUALITY, SEMANTIC


def results(capsys: Any, name: str, *files: str) -> dict[str, dict[str, Any]]:
    """Read results by the command; returns the rows by measure."""
    assert main(["evaluate", name, "--results", *files, "--json"]) == 0
    return {row["measure"]: row for row in json.loads(capsys.readouterr().out)["rows"]}


def test_geneval_s_kinds_count_alike_however_many_pictures_they_have(tmp_path, capsys):
    rows = [{"tag": "single_object", "correct": True, "filename": "a", "prompt": "b", "metadata": "{}"}] * 4
    rows += [{"tag": "counting", "correct": number == 0, "reason": "", "details": "{}"} for number in range(2)]
    rows += [{"tag": "position", "correct": False}] * 6
    found = results(capsys, "geneval", str(write_json_lines(tmp_path / "results.jsonl", rows)))
    assert {name: row["value"] for name, row in found.items()} == {
        "single_object": 1.0, "counting": 0.5, "position": 0.0, "overall": 0.5,
    }  # fmt: skip
    assert found["overall"]["count"] == 12
    assert found["overall"]["paper"] == {"Emu3": 0.54, "Emu3, rewriter": 0.66}


def test_compbench_s_categories_are_told_by_what_was_drawn_or_by_labels(tmp_path, capsys):
    color = tmp_path / "color" / "annotation_blip"
    color.mkdir(parents=True)
    (tmp_path / "color" / "run.json").write_text(json.dumps({"prompt_file": "/data/color_val.txt"}))
    answers = [{"question_id": 0, "answer": "0.7110"}, {"question_id": 1, "answer": "0.5110"}]
    (color / "vqa_result.json").write_text(json.dumps(answers))
    (tmp_path / "spatial.json").write_text(json.dumps([{"question_id": 3, "answer": 0.25}]))
    found = results(capsys, "t2i-compbench", f"{color}/vqa_result.json", f"spatial={tmp_path}/spatial.json")
    assert found["color"]["value"] == pytest.approx(0.611)
    assert found["color"]["paper"] == {"Emu3": 0.6107, "Emu3, rewriter": 0.7913}
    assert (found["spatial"]["value"], found["spatial"]["count"], found["spatial"]["paper"]) == (0.25, 1, {})


def test_dpg_s_text_gives_the_kinds_and_the_whole(tmp_path, capsys):
    text = (
        "/images/256.png, 1.0, 0.5, 0.75, 1.0, 0.8125\nModel: images\nL1 category scores:\n\tglobal: 80.25\n"
        "\trelation: 90.5\nL2 category scores:\n\tattribute - color: 12.0\nImage path: /images\n"
        "Save results to: /x.txt\nDPG-Bench score: 79.123456\n"
    )
    (tmp_path / "dpg.txt").write_text(text)
    found = results(capsys, "dpg-bench", f"{tmp_path}/dpg.txt")
    assert {name: row["value"] for name, row in found.items()} == {
        "global": 80.25, "relation": 90.5, "overall": 79.123456,
    }  # fmt: skip
    assert found["overall"]["paper"] == {"Emu3": 80.6, "Emu3, DPO": 81.6}


def write_vbench(path: Path, values: dict[str, float]) -> str:
    path.write_text(json.dumps({name: [value, [{"video_path": "x.mp4"}] * 3] for name, value in values.items()}))
    return str(path)


def test_vbench_s_totals_are_weighted_ranges_and_need_every_dimension(tmp_path, capsys):
    """All dimensions at the top of their ranges are 100 %, at the bottom 0; motion counts half."""
    best = {name: high for name, (_, high, _) in (QUALITY | SEMANTIC).items()}
    found = results(capsys, "vbench", write_vbench(tmp_path / "a_eval_results.json", best))
    assert [found[name]["value"] for name in ("quality", "semantic", "total")] == pytest.approx([100, 100, 100])
    worst = {name: low for name, (low, _, _) in (QUALITY | SEMANTIC).items()} | {"dynamic_degree": 1.0}
    found = results(capsys, "vbench", write_vbench(tmp_path / "b_eval_results.json", worst))
    assert found["quality"]["value"] == pytest.approx(100 * 0.5 / 6.5)
    assert found["total"]["value"] == pytest.approx(100 * 0.8 * 0.5 / 6.5)
    assert found["total"]["paper"] == {"Emu3": 80.96}
    del best["scene"]
    found = results(capsys, "vbench", write_vbench(tmp_path / "c_eval_results.json", best))
    assert found["quality"]["value"] == pytest.approx(100)
    assert "semantic" not in found
    assert found["total"]["value"] is None
    two = [write_vbench(tmp_path / f"{n}.json", part) for n, part in enumerate(({"scene": 0.4}, {"color": 0.9}))]
    found = results(capsys, "vbench", *two)
    assert (found["scene"]["value"], found["color"]["value"], found["color"]["count"]) == (0.4, 0.9, 3)


def test_table_puts_the_paper_s_figures_beside(tmp_path, capsys):
    path = write_json_lines(tmp_path / "results.jsonl", [{"tag": "colors", "correct": True}])
    assert main(["evaluate", "geneval", "--results", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["GenEval", "this", "samples", "Emu3", "Emu3,", "rewriter"]
    assert lines[-1].split() == ["overall", "1.0000", "1", "0.5400", "0.6600"]


@pytest.mark.parametrize("name", ["geneval", "t2i-compbench", "dpg-bench", "coco30k", "vbench"])
@pytest.mark.parametrize("text", ["", "[1, 2]", '{"a": 1}', "no result\n"])
def test_file_that_is_no_result_is_refused_in_one_line(name, text, tmp_path, capsys):
    (tmp_path / "x.json").write_text(text)
    assert main(["evaluate", name, "--results", f"{tmp_path}/x.json"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
