"""Scorers of texts on real texts: Python's manual, django's catalogues in 27 languages, and texts to break them."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import tiny

from tokenmill.demo.photographs import package_file
from tokenmill.demo.text_lines import english, read_catalogue
from tokenmill.errors import RecipeError
from tokenmill.filters.character_classes import classes_of
from tokenmill.filters.scorer import build_scorer
from tokenmill.filters.text_units import plain_units
from tokenmill.filters.unit_hashes import hashed_plain_units, hashed_units
from tokenmill.languages import sampled
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.report_data import Run
from tokenmill.pipelines.report_scores import scores_section
from tokenmill.recipe import check_recipe
from tokenmill.words import units_of

NAMES = ["language", "repetition", "character_ratios", "personal_data", "minhash"]
LANGUAGES = (
    "ar", "bg", "bn", "cs", "de", "el", "es", "fa", "fr", "he", "hi", "hu", "it", "ja", "ka", "ko", "nl", "pl", "pt",
    "ru", "sv", "ta", "th", "tr", "uk", "vi", "zh_Hans",
)  # fmt: skip
HOSTILE = [
    "", " \n\t", "a", "1", "\u0301", "\x00\x01\x1b[0m", "\u202e\u200d\ufeff", "\U0010ffff", "…", "@", "a@", "://:@",
    "\r\n" * 9, "x" * 1_000_000, "a " * 300_000, "中" * 100_000, "@." * 100_000, "+1" * 100_000,
    "-----BEGIN PRIVATE KEY-----" * 3_000,
]  # fmt: skip
# What (scorer, version) gives for GOLDEN_TEXT. A change without a new version is a mistake.
GOLDEN_TEXT = (
    "# Der Hund\nDer Hund läuft. Der Hund läuft…\n- Post an a.b@example.org, 8.8.8.8\nDer Hund läuft. Der Hund läuft…\n"
)
GOLDEN = {
    ("language", 1): {"language": "de", "language_confidence": 0.6},
    ("repetition", 1): {
        "repeated_line_ratio": 0.25,
        "repeated_line_char_ratio": 31 / 106,
        "repeated_paragraph_ratio": 0.0,
        "repeated_paragraph_char_ratio": 0.0,
        "top_2gram_char_ratio": 35 / 90,
        "top_3gram_char_ratio": 26 / 90,
        "top_4gram_char_ratio": 38 / 90,
        "repeated_5gram_char_ratio": 26 / 90,
        "repeated_6gram_char_ratio": 26 / 90,
        **{f"repeated_{n}gram_char_ratio": 0.0 for n in (7, 8, 9, 10)},
    },
    ("personal_data", 1): {
        **{f"num_{kind}": 0 for kind in ("credentials", "secrets", "ibans", "cards", "phone_numbers")},
        "num_emails": 1,
        "num_ip_addresses": 1,
    },
}


@pytest.fixture(scope="module")
def manual():
    return [document["text"] for document in english()]


@pytest.fixture(scope="module")
def sentences():
    """Some complete sentences of every language, by its code."""
    package = package_file("django", "__init__.py").parent
    found = {}
    for language in LANGUAGES:
        texts = []
        for path in sorted(package.glob(f"**/locale/{language}/LC_MESSAGES/django.mo")):
            messages = read_catalogue(path.read_bytes())
            texts += [new for old, new in messages.items() if new != old and len(new) >= 40 and new.isprintable()]
        found[language] = [text for text in texts if "%" not in text and "{" not in text and "<" not in text][:40]
    return found


def table(scorer, batch):
    return pl.DataFrame(dict(scorer.score(batch)), schema=dict(scorer.columns), strict=True)


def score(name, text, **settings):
    return table(build_scorer(name, settings), [text]).row(0, named=True)


@pytest.mark.parametrize(("name", "version"), GOLDEN)
def test_text_scorer_of_this_version_gives_its_golden_values(name, version):
    assert build_scorer(name).version == version
    values = score(name, GOLDEN_TEXT)
    golden = GOLDEN[name, version]
    assert values == {c: pytest.approx(v, rel=0.2 if "conf" in c else 1e-3) if isinstance(v, float) else v
                      for c, v in golden.items()}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_text_scorer_takes_any_text(name):
    found = table(build_scorer(name), HOSTILE)
    assert found.height == len(HOSTILE)
    assert all(column.is_finite().all() for column in found.select(pl.selectors.float()).iter_columns())


@pytest.mark.parametrize("name", NAMES)
def test_text_scorer_gives_the_same_in_every_batch_size(name, manual, sentences):
    texts = [*manual[:40], *(text for some in sentences.values() for text in some[:2]), "", "x"]
    scorer = build_scorer(name)
    whole = table(scorer, texts)
    for size in (1, 7):
        parts = [table(scorer, texts[start : start + size]) for start in range(0, len(texts), size)]
        assert pl.concat(parts).equals(whole)


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_text_scorers_never_raise(texts):
    for name in NAMES:
        assert table(build_scorer(name), texts).height == len(texts)


@given(st.text())
def test_character_classes_are_those_of_python(text):
    assert (classes_of(text) == 30).tolist() == [char.isspace() for char in text]


@given(st.lists(st.text(), min_size=1, max_size=3))
def test_hashed_units_are_the_plain_units(texts):
    known = {}
    for text, hashes in zip(texts, hashed_plain_units(texts), strict=True):
        for unit, value in zip(plain_units(text), hashes.tolist(), strict=True):
            assert known.setdefault(unit, value) == value
    found = hashed_units(texts)
    units = [unit for text in texts for unit in units_of(text)]
    assert [len(units_of(text)) for text in texts] == found.sizes.tolist()
    assert [len(unit) for unit in units] == found.chars.tolist()
    for unit, value in zip(units, found.hashes.tolist(), strict=True):
        assert known.setdefault(unit, value) == value
    assert len(set(known.values())) == len(known)


def test_language_of_sentences_is_found(sentences):
    right, number = 0, 0
    for code, texts in sentences.items():
        found = table(build_scorer("language"), texts)["language"].to_list()
        expected = code.split("_")[0]
        share = found.count(expected) / len(texts)
        assert share > 0.7, (code, found)
        right, number = right + found.count(expected), number + len(texts)
    assert len(sentences) >= 20 and right / number > 0.95


def test_language_confidence_is_lower_where_it_is_wrong(sentences):
    found = pl.concat(
        table(build_scorer("language"), [text[:25] for text in texts]).with_columns(code=pl.lit(code.split("_")[0]))
        for code, texts in sentences.items()
    ).drop_nulls()
    right = found.filter(pl.col("language") == pl.col("code"))["language_confidence"].mean()
    wrong = found.filter(pl.col("language") != pl.col("code"))["language_confidence"].mean()
    assert right > wrong + 0.2


@pytest.mark.parametrize("text", ["", "12 34", "… — !", "https://example.org/index.html", "\x00"])
def test_language_of_text_without_words_is_null(text):
    assert score("language", text) == {"language": None, "language_confidence": None}


def test_language_below_the_confidence_asked_for_is_null_and_the_confidence_stays():
    sure = score("language", "Dies ist ein ganz gewöhnlicher Satz.")
    unsure = score("language", "Dies ist ein ganz gewöhnlicher Satz.", min_confidence=1.0)
    assert sure["language"] == "de" and unsure["language"] is None
    assert unsure["language_confidence"] == sure["language_confidence"] > 0.5


def test_language_of_a_long_text_is_read_from_its_beginning_middle_and_end():
    text = "a" * 500 + "é" * 500 + "z" * 500
    sample = sampled(text, 90)
    assert len(sample.encode()) <= 92
    assert {"a", "é", "z"} <= set(sample)


def test_repetition_of_lines_and_paragraphs_counts_later_ones():
    values = score("repetition", "one\n\ntwo two\n\none\n\none\n")
    assert values["repeated_line_ratio"] == values["repeated_paragraph_ratio"] == 0.5
    assert values["repeated_line_char_ratio"] == pytest.approx(6 / 16)


def test_repetition_of_ngrams_agrees_with_counting_them_one_by_one(manual):
    for text in [*manual[::25], "a b a b a b a b a b a b", "中文中文中文 中文"]:
        values = score("repetition", text)
        for n in (2, 3, 4):
            assert values[f"top_{n}gram_char_ratio"] == pytest.approx(_top(units_of(text), n), abs=1e-6)
        for n in (5, 10):
            assert values[f"repeated_{n}gram_char_ratio"] == pytest.approx(_covered(units_of(text), n), abs=1e-6)


def _ngrams(units, n):
    return [tuple(units[start : start + n]) for start in range(len(units) - n + 1)]


def _top(units, n):
    counts = {}
    for ngram in _ngrams(units, n):
        counts[ngram] = counts.get(ngram, 0) + 1
    number, chars = max(((count, len("".join(ngram))) for ngram, count in counts.items()), default=(1, 0))
    return min(1, number * chars / len("".join(units))) if number > 1 else 0


def _covered(units, n):
    seen, covered = set(), set()
    for start, ngram in enumerate(_ngrams(units, n)):
        if ngram in seen:
            covered.update(range(start, start + n))
        seen.add(ngram)
    return sum(len(units[place]) for place in covered) / len("".join(units))


def test_repetition_of_prose_is_low_and_of_a_loop_high(manual, sentences):
    prose = table(build_scorer("repetition"), manual)
    assert prose["top_2gram_char_ratio"].median() < 0.1 and prose["repeated_10gram_char_ratio"].median() < 0.05
    for text in ("buy cheap watches online " * 40, "买便宜的手表" * 40, "ซื้อนาฬิกา" * 40):
        assert score("repetition", text)["repeated_10gram_char_ratio"] > 0.8
    japanese = "".join(sentences["ja"])
    assert score("repetition", japanese)["top_2gram_char_ratio"] < 0.1


def test_character_ratios_of_a_list_count_its_bullets_and_ellipses():
    values = score("character_ratios", "• one\n- TWO 22 ...\n\nthree…\n4) four # and the\n")
    assert values == {
        "letter_ratio": pytest.approx(21 / 32),
        "digit_ratio": pytest.approx(3 / 32),
        "uppercase_ratio": pytest.approx(3 / 21),
        "alphabetic_word_ratio": pytest.approx(6 / 12),
        "mark_word_ratio": pytest.approx(3 / 12),
        "bullet_line_ratio": 0.75,
        "ellipsis_line_ratio": 0.5,
        "longest_line_chars": 17,
        "control_chars": 0,
        "stop_words": 2,
    }


def test_character_ratios_hold_in_other_scripts(sentences):
    for code in ("hi", "ar", "ja", "ru"):
        values = score("character_ratios", " ".join(sentences[code]))
        assert values["letter_ratio"] > 0.6 and values["stop_words"] == 0
    assert score("character_ratios", "der und die", stop_words=["und", "die"])["stop_words"] == 2


def test_character_ratios_count_control_characters():
    assert score("character_ratios", "a\x00b\x1b[1m\tc\n\x07")["control_chars"] == 3


def test_minhash_estimates_the_share_of_common_shingles(manual):
    scorer, errors = build_scorer("minhash"), []
    generator = np.random.default_rng(3)
    for text in manual[:80]:
        words = text.split()
        for share in (0.01, 0.05, 0.2):
            changed = " ".join(word + "q" if generator.random() < share else word for word in words)
            first, second = (np.array(signature) for signature in scorer.score([text, changed])["minhash"])
            shingles = [set(_ngrams(plain_units(one), 5)) for one in (text, changed)]
            if all(shingles):
                jaccard = len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])
                errors.append((first == second).mean() - jaccard)
    assert len(errors) > 200
    assert abs(np.mean(errors)) < 0.01 and np.sqrt(np.mean(np.square(errors))) < 0.044


def test_minhash_does_not_see_case_punctuation_and_width():
    plain, odd = "one two three four five six", "  ONE, two — Three; ｆｏｕｒ (five) six!"
    assert score("minhash", plain) == score("minhash", odd)
    assert score("minhash", "… !") == {"minhash": None}
    assert score("minhash", "short text")["minhash"] is not None


def test_minhash_of_this_version_gives_its_golden_values():
    signature = build_scorer("minhash").score(["The quick brown fox jumps over the lazy dog. 敏捷的棕色狐狸"])[
        "minhash"
    ][0]
    assert signature[:3] == [63421489, 222935625, 235372580]
    other = build_scorer("minhash", {"seed": 2}).score(["The quick brown fox jumps over the lazy dog"])["minhash"][0]
    assert len(set(signature) & set(other)) < 5


def test_minhash_column_keeps_its_type_through_a_run(tmp_path):
    tiny.write_data(tmp_path / "data")
    scorers = {"minhash": {}, "language": {}, "repetition": {}, "character_ratios": {}, "personal_data": {}}
    changes = {"filter.text": {"scorers": scorers, "rules": {"known": "language_confidence >= 0"}}}
    value = tiny.recipe(tmp_path / "data", str(tmp_path / "root"), changes, sources=["text"])
    chain = Chain(recipe=check_recipe(value, "tiny"), options=ChainOptions(quiet=True))
    (snapshot,) = [one for one in chain.score["text"] if one.folder.config.settings["scorer"] == "minhash"]
    rows = pl.concat([snapshot.folder.read_rows(commit) for commit in snapshot.commits])
    assert rows.schema["minhash"] == pl.Array(pl.UInt32, 128)
    good = rows.filter(pl.col("fail_reason").is_null())
    assert good.height == 9 and good["minhash"].null_count() == 0
    text = json.loads((tmp_path / "data" / "text" / "texts.jsonl").read_bytes().split(b"\n")[0])["text"]
    assert good["minhash"][0].to_list() == score("minhash", text)["minhash"]
    assert sum(commit.counts.kept for commit in chain.select["text"].commits) == 9
    histograms = str(scores_section(Run(chain)))
    assert "language_confidence" in histograms and "minhash" not in histograms  # a vector has none


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("language", {"min_confidence": 2}, "min_confidence: .*less than or equal to 1"),
        ("minhash", {"num_permutations": 4}, "num_permutations: .*greater than or equal to 8"),
        ("personal_data", {"phone_regions": ["Germany"]}, "no numbering plan of 'Germany'"),
        ("character_ratios", {"words": []}, "unknown setting 'words'; allowed: stop_words"),
    ],
)
def test_recipe_that_sets_a_text_scorer_wrongly_says_what_is_allowed(name, settings, says):
    with pytest.raises(RecipeError, match=says):
        build_scorer(name, settings)


def test_fingerprint_of_a_text_scorer_covers_its_settings():
    for name, settings in (
        ("language", {"sample_bytes": 90}),
        ("minhash", {"seed": 5}),
        ("personal_data", {"phone_regions": ["GB"]}),
    ):
        assert (
            build_scorer(name, settings).fingerprint != build_scorer(name).fingerprint == build_scorer(name).fingerprint
        )
