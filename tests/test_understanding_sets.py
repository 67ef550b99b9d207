"""What lmms-eval wrote, read into one table beside the paper's figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokenmill.cli import main
from tokenmill.errors import RecipeError
from tokenmill.generate.understanding_sets import SETS, lmms_command, mean_of, read_scores, rows_of, table_of


def write_results(path: Path, values: dict[str, dict[str, object]], counts: dict[str, dict[str, int]] | None = None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"results": values, "n-samples": counts or {}}))
    return path


def of_the_paper() -> dict[str, dict[str, object]]:
    return {one.tasks[0]: {"alias": "x", f"{one.metric},none": one.paper / one.scale} for one in SETS}


def test_the_papers_own_figures_read_back_give_its_mean_of_twelve(tmp_path):
    scores = read_scores([write_results(tmp_path / "a_results.json", of_the_paper())])
    assert [round(score.value, 6) for score in scores] == [one.paper for one in SETS]
    assert [round(value, 1) for value in mean_of(scores)] == [62.1, 62.1]


def test_sets_that_were_not_run_are_told_and_left_out_of_both_means(tmp_path):
    values = {
        "pope": {"pope_f1_score,none": 0.5, "pope_accuracy,none": 0.9},
        "ocrbench": {"ocrbench_accuracy,none": 0.25},
    }
    scores = read_scores([write_results(tmp_path / "a_results.json", values)])
    rows = {row["set"]: row for row in rows_of(scores)}
    assert rows["POPE"]["score"] == 50 and rows["OCRBench"]["score"] == 250 and rows["GQA"]["score"] is None
    mean = rows_of(scores)[-1]
    assert (mean["set"], mean["score"], mean["paper"]) == ("mean of 2", 37.5, round((85.2 + 68.7) / 2, 2))
    assert "mean of 2" in table_of(scores) and len(table_of(scores).splitlines()) == 14


def test_a_folder_of_several_runs_is_read_whole_and_the_later_run_of_a_set_wins(tmp_path):
    write_results(tmp_path / "m/20260101_results.json", {"gqa": {"exact_match,none": 0.1}})
    write_results(tmp_path / "m/20260102_results.json", {"gqa": {"exact_match,none": 0.2}})
    (tmp_path / "submissions").mkdir()
    (tmp_path / "submissions/mmbench_en_dev_results.json").write_text('{"overall_acc": 0.9}')
    write_results(tmp_path / "m/20260103_results.json", {"ai2d": {"exact_match,flexible-extract": 0.3}})
    found = {score.set.name: score.value for score in read_scores([tmp_path])}
    assert found == pytest.approx({"GQA": 20.0, "AI2D": 30.0})


def test_a_limited_run_says_how_many_documents_were_asked(tmp_path):
    counts = {"gqa": {"original": 12578, "effective": 100}}
    scores = read_scores([write_results(tmp_path / "a_results.json", {"gqa": {"exact_match,none": 0.1}}, counts)])
    assert "only 100 of 12,578 documents" in table_of(scores)


def test_mmbench_of_a_judge_is_read_as_well(tmp_path):
    path = write_results(tmp_path / "a_results.json", {"mmbench_en_dev": {"gpt_eval_score,none": 58.0}})
    assert [(score.set.name, score.value) for score in read_scores([path])] == [("MMBench", 58.0)]


def test_a_metric_that_was_not_computed_is_no_score(tmp_path):
    values = {"mmvet": {"gpt_eval_score,none": "N/A"}, "gqa": {"exact_match,none": 0.1}}
    scores = read_scores([write_results(tmp_path / "a_results.json", values)])
    assert [score.set.name for score in scores] == ["GQA"]


@pytest.mark.parametrize(
    ("text", "told"), [("{", "no results"), ("[]", 'no "results"'), ('{"results": {"x": {}}}', "none of the twelve")]
)
def test_other_files_are_refused_by_name(tmp_path, text, told):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"x\.json") as caught:
        read_scores([path])
    assert told in str(caught.value)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="--output_path"):
        read_scores([tmp_path])


def test_the_command_names_the_model_and_twelve_tasks():
    command = lmms_command("my run/export", device="cuda:1")
    assert "'pretrained=my run/export'" in command and "--device cuda:1" in command
    assert command.split("--tasks ")[1].split()[0].count(",") == 11


def test_the_command_line_prints_table_json_and_command(tmp_path, capsys):
    path = str(write_results(tmp_path / "a_results.json", of_the_paper()))
    assert main(["evaluate", "lmms", "--results", path]) == 0
    assert capsys.readouterr().out == table_of(read_scores([path])) + "\n"
    assert main(["evaluate-lmms", "--results", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["sets"]) == 12 and found["mean"]["paper"] == 62.12
    assert main(["evaluate", "lmms", "--model", "run/export", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == lmms_command("run/export", device="cpu") + "\n"
    assert main(["evaluate", "lmms"]) == 2
    assert "--results" in capsys.readouterr().err
