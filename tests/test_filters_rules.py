"""Selection rules and gates: what they keep, why they drop, and what they refuse before anything runs."""

from __future__ import annotations

import polars as pl
import pytest

from tokenmill.errors import RecipeError
from tokenmill.filters.rules import Gate, Rules, columns_of

COLUMNS = {
    "min_side_px": pl.Int32(),
    "aesthetic": pl.Float32(),
    "is_monochrome": pl.Boolean(),
    "text_coverage": pl.Float32(),
    "language": pl.String(),
}


def table(**columns):
    return pl.DataFrame(columns, schema={name: COLUMNS[name] for name in columns})


def reasons(rules, rows):
    return Rules.parse(rules, COLUMNS).apply(rows).to_list()


def test_row_that_fails_several_rules_is_dropped_for_the_first():
    rows = table(min_side_px=[10, 10, 64, 64], aesthetic=[1, 9, 1, 9])
    small, ugly = {"resolution": "min_side_px >= 64"}, {"beauty": "aesthetic > 5"}
    assert reasons(small | ugly, rows) == ["resolution", "resolution", "beauty", None]
    assert reasons(ugly | small, rows) == ["beauty", "resolution", "beauty", None]


def test_row_with_missing_or_nan_score_is_dropped_as_null():
    rows = table(aesthetic=[None, float("nan"), 6.0])
    assert reasons({"beauty": "aesthetic > 5"}, rows) == ["beauty:null", "beauty:null", None]


def test_rescue_rule_keeps_a_row_whose_other_score_is_missing():
    rescue = {"beauty": "aesthetic >= 5.5 OR (NOT is_monochrome AND text_coverage < 0.1)"}
    rows = table(
        aesthetic=[6.0, 3.0, 3.0, None],
        is_monochrome=[True, False, True, False],
        text_coverage=[None, 0.0, 0.0, 0.0],
    )
    assert reasons(rescue, rows) == [None, None, "beauty", None]


def judged(rules, rescues, rows):
    found = Rules.parse(rules, COLUMNS, rescues=rescues).judge(rows)
    return found.select("reason", "rescued_by").rows()


def test_rescue_keeps_what_fails_a_rule_or_cannot_be_judged_by_it():
    rows = table(
        aesthetic=[6.0, 3.0, 3.0, None, None, float("nan")],
        is_monochrome=[False, False, True, False, True, False],
    )
    found = judged({"beauty": "aesthetic >= 5.5"}, {"beauty": "NOT is_monochrome"}, rows)
    lost, unknown, rescued = ("beauty", None), ("beauty:null", None), (None, "beauty")
    assert found == [(None, None), rescued, lost, rescued, unknown, rescued]


def test_rescue_that_is_null_or_nan_rescues_nobody():
    rows = table(aesthetic=[3.0, 3.0, None, 6.0], text_coverage=[None, float("nan"), None, None])
    found = judged({"beauty": "aesthetic >= 5.5"}, {"beauty": "text_coverage < 0.1"}, rows)
    assert found == [("beauty", None), ("beauty", None), ("beauty:null", None), (None, None)]


def test_rescued_row_still_meets_the_rules_that_follow():
    rules = {"beauty": "aesthetic >= 5.5", "size": "min_side_px >= 64", "text": "text_coverage < 0.1"}
    rescues = {"beauty": "NOT is_monochrome", "text": "language = 'en'"}
    rows = table(
        aesthetic=[1, 1, 9, 1],
        is_monochrome=[False, False, False, False],
        min_side_px=[64, 10, 64, 64],
        text_coverage=[0.5, 0.5, 0.5, 0.0],
        language=["en", "en", "de", "de"],
    )
    found = judged(rules, rescues, rows)
    assert found == [(None, "beauty,text"), ("size", "beauty"), ("text", None), (None, "beauty")]


def test_judging_agrees_with_the_verdicts_and_with_the_texts():
    rules = {"beauty": "aesthetic >= 5.5", "size": "min_side_px >= 64"}
    parsed = Rules.parse(rules, COLUMNS, rescues={"beauty": "NOT is_monochrome"})
    values = [None, 1.0, 9.0]
    rows = [(a, m, s) for a in values for m in (None, True, False) for s in (None, 10, 99)]
    given = pl.DataFrame(rows, schema=["aesthetic", "is_monochrome", "min_side_px"], orient="row").cast(
        {"aesthetic": pl.Float32, "min_side_px": pl.Int32, "is_monochrome": pl.Boolean}
    )
    assert parsed.judge(given)["reason"].to_list() == parsed.apply(given).to_list()
    kept = Rules.parse(parsed.texts, COLUMNS).apply(given).is_null()
    assert kept.to_list() == parsed.apply(given).is_null().to_list()


def test_identity_of_rules_names_a_rescue_only_where_there_is_one():
    parsed = Rules.parse({"a": "aesthetic > 5", "b": "aesthetic > 6"}, COLUMNS, rescues={"b": "NOT is_monochrome"})
    assert parsed.identity == [["a", "aesthetic > 5"], ["b", "aesthetic > 6", "NOT is_monochrome"]]
    assert parsed.columns == {"aesthetic", "is_monochrome"}


def test_rule_on_a_closed_column_is_refused_with_the_reason():
    with pytest.raises(RecipeError, match=r"rules\.a: no rule may look at 'aesthetic': because"):
        Rules.parse({"a": "aesthetic > 5"}, COLUMNS, closed={"aesthetic": "because"})


def test_verdicts_of_rules_are_independent_of_each_other():
    rows = table(min_side_px=[10, 64], aesthetic=[1, None])
    verdicts = Rules.parse({"small": "min_side_px >= 64", "ugly": "aesthetic > 5"}, COLUMNS).verdicts(rows)
    assert verdicts.to_dict(as_series=False) == {"small": ["small", None], "ugly": ["ugly", "ugly:null"]}


def test_no_rules_keep_everything():
    assert reasons({}, table(min_side_px=[1, None])) == [None, None]


def test_rules_on_no_rows_give_no_reasons():
    assert reasons({"small": "min_side_px >= 64"}, table(min_side_px=[])) == []


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("min_side >= 64", r"unknown column 'min_side' \(did you mean 'min_side_px'\?\); allowed: aesthetic, is_mono"),
        ("min_side_px >=", "no SQL expression"),
        ("min_side_px > 1; DROP TABLE x", "no SQL expression"),
        ("nonsense(min_side_px) > 1", "unsupported function"),
        ("1 > 0", "reads no column"),
        ("min_side_px", "true or false for each sample, it is Int32"),
        ("language > 3", "language > 3"),
        ("aesthetic > avg(aesthetic)", "more than one row"),
        ("max(aesthetic) > 5", "more than one row"),
        ("aesthetic IN (SELECT aesthetic)", "is no SQL expression"),
        ("count(*) > 5 AND is_monochrome", "more than one row"),
        ("aesthetic > quantile_cont(aesthetic, 0.5)", "more than one row"),
        ("sum(aesthetic) OVER (PARTITION BY language) > 5", "more than one row"),
        (5, "expected an SQL expression"),
    ],
)
def test_rule_that_cannot_work_is_refused_before_it_runs(expression, says):
    with pytest.raises(RecipeError, match=says) as caught:
        Rules.parse({"some_rule": expression}, COLUMNS, "filter.image.rules")
    assert str(caught.value).startswith("filter.image.rules.some_rule: ")


def test_rule_whose_strings_look_like_functions_is_accepted():
    assert reasons({"r": "language <> 'Agg' AND language <> 'Over'"}, table(language=["Agg", "en"])) == ["r", None]


@pytest.mark.parametrize("name", ["", "a b", "a:null"])
def test_rule_with_an_unfit_name_is_refused(name):
    with pytest.raises(RecipeError, match="name"):
        Rules.parse({name: "is_monochrome"}, COLUMNS)


def test_gate_stays_shut_where_it_cannot_be_decided():
    gate = Gate.parse("min_side_px >= 64 AND aesthetic > 5", COLUMNS)
    rows = table(min_side_px=[64, 64, 10, None, 64], aesthetic=[6.0, None, 6.0, 6.0, float("nan")])
    assert gate.apply(rows).to_list() == [True, False, False, False, False]


def test_columns_of_expression_are_sorted_and_unique():
    assert columns_of("b > 1 OR (a IS NOT NULL AND b < 9)") == ("a", "b")
