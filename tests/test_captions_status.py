"""What is told of asking: by the command, by status, in the folder's config, and by an estimate that asks nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.asking import AskedRoot, answers_of

from tokenmill.cli import main
from tokenmill.pipelines.status import render_status, status_of

PRICES = {"input_per_million": 1_000.0, "output_per_million": 100_000.0, "currency": "EUR"}


@pytest.fixture
def asked(tmp_path: Path) -> AskedRoot:
    root = AskedRoot(folder=tmp_path)
    root.changes["caption.image"] = {"columns": {"dense": root.column(prices=PRICES)}}
    return root


def told(asked: AskedRoot, capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([arguments[0], str(asked.write()), *arguments[1:], "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_caption_command_tells_what_was_kept_and_what_was_asked_just_now(
    asked: AskedRoot, capsys: pytest.CaptureFixture[str]
) -> None:
    asked.fail(**{"00001": "refuse", "01002": "pass"})
    row = told(asked, capsys, "run", "--until", "caption")["stages"][-1]
    assert (row["in"], row["kept"], row["failed"]) == (12, 10, {"refusal": 1, "http_503": 1})
    ((path, totals),) = row["asked"].items()
    assert path.startswith("caption/scenes/")
    assert (totals["questions"], totals["requests"], totals["retried"]) == (12, 14, {"http_503": 2})
    assert totals["output_tokens"] == 11 * 7
    assert totals["cost"] == pytest.approx((totals["input_tokens"] * 1_000 + 77 * 100_000) / 1e6)
    asked.fail()
    again = told(asked, capsys, "caption", "--retry-failed")["stages"][-1]
    assert (again["kept"], again["failed"]) == (12, {})
    assert [one["questions"] for one in again["asked"].values()] == [2]
    assert main(["caption", str(asked.write())]) == 0
    assert "asked 0 questions in 0 requests" in capsys.readouterr().out


def test_status_adds_up_what_a_folder_ever_cost_and_says_how_to_ask_again(asked: AskedRoot) -> None:
    """Half of the samples go: what was paid for them stays in the sum."""
    asked.fail(**{"00001": "pass"})
    asked.run()
    Path(asked.folder, "data", "00001.tar").unlink()
    chain = asked.run()
    assert answers_of(chain).totals["questions"] == 6
    found = status_of(asked.recipe())
    (row,) = [row for row in found["stages"] if row["stage"] == "caption"]
    assert (row["what"], row["counts"]["failed"]) == ("dense", {"http_503": 1})
    totals = row["asked"]
    assert (totals["questions"], totals["requests"], totals["unanswered"]) == (12, 14, 1)
    assert totals["output_tokens_per_s_worker"] > 0 and totals["currency"] == "EUR"
    text = render_status(found)
    assert "caption scenes dense" in text
    assert "asked 12 questions in 14 requests (again for http_503 2)" in text and "EUR" in text
    assert "1 questions have no good answer; tokenmill caption RECIPE --retry-failed" in text


def test_status_of_a_killed_unit_tells_the_answers_in_its_journal(asked: AskedRoot) -> None:
    outcome = asked.command(changes={"caption.image.columns.dense.die_after": 9})
    assert outcome.was_killed
    found = status_of(asked.recipe())
    (row,) = [row for row in found["stages"] if row["stage"] == "caption"]
    assert row["done"] < row["total"]
    assert row["asked"]["questions"] + row["asked"]["in_journals"] == 8
    assert "answers in journals" in render_status(found)
    assert found["waiting"] == ["choose", "tokenize", "plan"]


def test_estimate_asks_nobody_and_reckons_with_what_was_asked_before(
    asked: AskedRoot, capsys: pytest.CaptureFixture[str]
) -> None:
    (unknown,) = told(asked, capsys, "estimate", "--units", "1")["asking"]
    assert asked.asked() == {}
    assert (unknown["questions"], unknown["asked"], unknown["cost"]) == (pytest.approx(12, abs=1), 0, None)
    asked.run(limit=1)
    asked.forget()
    (known,) = told(asked, capsys, "estimate", "--units", "1")["asking"]
    assert asked.asked() == {}
    assert (known["asked"], known["output_tokens"]) == (6, 7 * known["questions"])
    assert known["cost"] > 0 and known["currency"] == "EUR"
    assert main(["estimate", str(asked.write()), "--units", "1"]) == 0
    assert "none was asked for this estimate; by the 6 asked before" in capsys.readouterr().out
