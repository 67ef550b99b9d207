"""What is told of asking: by the command, by status, in the folder's config, and by an estimate that asks nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.asked_captioner import install
from tests.asking import AskedRoot, answers_of

from tokenmill.cli import main
from tokenmill.pipelines.caption import engine_described
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.checks import check_chain
from tokenmill.pipelines.report import report_page
from tokenmill.pipelines.status import render_status, status_of
from tokenmill.recipe import check_recipe
from tokenmill.settings_caption import CaptionColumn

PRICES = {"input_per_million": 1_000.0, "output_per_million": 100_000.0, "currency": "EUR"}


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AskedRoot:
    install(monkeypatch)
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


def test_report_shows_samples_with_all_that_was_said_of_them_and_no_markup_of_theirs(asked: AskedRoot) -> None:
    asked.write_shard(0, ["00000", "00001<script>alert(1)</script>"])
    asked.write_shard(1, ["01000"])
    prompt = "Say no. {key}<img src=x onerror=alert(1)>"
    columns = {"dense": asked.column(prompt=prompt, prices=PRICES), "own": {"engine": "metadata"}}
    asked.changes["caption.image"] = {"columns": columns, "use": [["dense", "own"]]}
    chain = asked.run()
    page = report_page(chain.store, chain.recipe, chain)
    assert "<script>alert" not in page and "<img src=x" not in page
    assert "Say no. 01000&lt;img src=x" in page
    assert page.count("chip kept") >= 3
    row = "<td>scenes</td><td>dense</td><td>logged</td>"
    assert row in page and "EUR" in page


def test_inspect_of_a_folder_of_answers_tells_engine_prompt_and_cost(
    asked: AskedRoot, capsys: pytest.CaptureFixture[str]
) -> None:
    asked.changes["caption.image"] = {"columns": {"dense": asked.column(takes_pictures=False)}}
    folder = f"{asked.root}/{answers_of(asked.run()).folder.path}"
    capsys.readouterr()
    assert main(["inspect", folder, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["prompt"] == ["Say {metadata.title}"]
    assert found["about"]["engine_settings"]["takes_pictures"] is False
    assert len(found["about"]["prompt_hash"]) == 64
    assert found["totals"]["questions"] == 12
    assert "log" in found["about"]["engine_settings"]


def test_config_of_a_folder_shows_no_place_and_nothing_that_may_be_secret() -> None:
    said = {"model": "m", "base_urls": ["http://user:pass@gpu:8000/v1"], "api_key_env": "HUSH", "max_tokens": 9}
    said |= {"extra": {"top_k": 5, "proxy": "http://user:pass@gpu", "api_key": "x"}, "prompt": "Say it"}
    told = engine_described(CaptionColumn.model_validate({"engine": "openai", **said}))
    assert told["engine_settings"] == {"model": "m", "max_tokens": 9, "extra": {"top_k": 5, "proxy": "…"}}


def test_recipe_in_the_docs_is_accepted(asked: AskedRoot) -> None:
    text = (Path(__file__).parents[1] / "docs" / "captions.md").read_text()
    documented = yaml.safe_load(text.split("```yaml")[1].split("```")[0])
    value = asked.value() | {"caption": documented["caption"]}
    value["plan"] |= documented["plan"]
    value["sources"]["charts"] = value["sources"]["scenes"]
    chain = Chain(recipe=check_recipe(value, "docs"), options=ChainOptions(quiet=True))
    check_chain(chain)
    forms = {name: column.form for name, column in chain.captions_of("image").columns.items()}
    assert forms == {"dense": "caption", "original": "caption", "pairs": "questions"}
