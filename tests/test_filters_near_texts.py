"""Near copies of texts: real sentences with edits, and signatures against comparing all with all."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re

import numpy as np
import pytest
from tests.near_rows import greedy_leaders, map_backwards

from tokenmill.filters.near_texts import text_leaders
from tokenmill.filters.text_bands import Banding, agreeing, choose_banding

PERMUTATIONS = 128
MODULES = [
    "argparse",
    "collections",
    "contextlib",
    "csv",
    "datetime",
    "decimal",
    "email.message",
    "fractions",
    "functools",
    "heapq",
    "logging",
    "pathlib",
    "pickle",
    "random",
    "statistics",
    "string",
    "subprocess",
    "tarfile",
    "textwrap",
    "zipfile",
]


def minhash(text, seed=7):
    """MinHash of the text's shingles of five words, as the scorer defines it."""
    words = re.findall(r"\w+", text.lower())
    shingles = {" ".join(words[start : start + 5]) for start in range(max(1, len(words) - 4))}
    values = np.array(
        [int.from_bytes(hashlib.blake2b(shingle.encode(), digest_size=4).digest()) for shingle in shingles]
    )
    generator = np.random.default_rng(seed)
    prime = 2**31 - 1
    factors, offsets = generator.integers(1, prime, (2, PERMUTATIONS, 1))
    return ((factors * (values % prime) + offsets) % prime).min(axis=1).astype(np.uint32)


def made_signatures(count, copies, seed=0):
    """Random signatures; copies agree with another in 60 to 100 % of the permutations."""
    generator = np.random.default_rng(seed)
    originals = generator.integers(0, 2**32, (count - copies, PERMUTATIONS), dtype=np.uint32)
    near = originals[generator.integers(0, len(originals), copies)]
    other = generator.integers(0, 2**32, near.shape, dtype=np.uint32)
    edited = generator.random(near.shape) < generator.uniform(0, 0.4, (copies, 1))
    return generator.permutation(np.concatenate([originals, np.where(edited, other, near)]))


def greedy_text_leaders(signatures, least):
    return greedy_leaders(
        len(signatures), lambda row, kept: np.count_nonzero(signatures[kept] == signatures[row], axis=1) >= least
    )


def paragraphs():
    """Real prose: the doc strings of the standard library's modules that are long enough."""
    found = set()
    for name in MODULES:
        for member in vars(importlib.import_module(name)).values():
            text = inspect.getdoc(member) or "" if inspect.isclass(member) or inspect.isfunction(member) else ""
            if len(text.split()) >= 120:
                found.add(text)
    return sorted(found)


def test_edited_paragraphs_name_their_original_and_others_stay():
    originals = paragraphs()
    assert len(originals) > 20
    edited = [text.replace(text.split()[40], "something", 1) + " Copied." for text in originals]
    rewritten = [" ".join(reversed(text.split())) for text in originals]
    signatures = np.stack([minhash(text) for text in [*originals, *edited, *rewritten]])
    leaders = text_leaders(signatures, min_jaccard=0.8)
    alone = text_leaders(signatures[: len(originals)], min_jaccard=0.8)
    assert leaders[len(originals) : 2 * len(originals)].tolist() == alone.tolist()
    assert leaders[2 * len(originals) :].min() >= 2 * len(originals)


@pytest.mark.parametrize("min_jaccard", [0.5, 0.7, 0.8, 0.95, 1.0])
def test_signatures_equal_brute_force_but_for_what_bands_may_miss(min_jaccard):
    signatures = made_signatures(2500, 1250)
    leaders = text_leaders(signatures, min_jaccard=min_jaccard)
    expected = greedy_text_leaders(signatures, agreeing(PERMUTATIONS, min_jaccard))
    dropped, to_drop = leaders != np.arange(2500), expected != np.arange(2500)
    assert np.count_nonzero(dropped & to_drop) >= 0.99 * np.count_nonzero(to_drop) > 0
    agree = (signatures[dropped] == signatures[leaders[dropped]]).mean(axis=1)
    assert agree.min() >= min_jaccard
    assert not dropped[leaders[dropped]].any()


def test_threads_and_segments_on_disk_change_nothing(tmp_path):
    signatures = made_signatures(20_000, 8000)
    leaders = text_leaders(signatures, min_jaccard=0.8)
    in_parts = text_leaders(
        signatures, min_jaccard=0.8, workspace=tmp_path / "parts", rows_at_once=3000, map_parts=map_backwards
    )
    assert np.array_equal(in_parts, leaders)
    assert np.array_equal(text_leaders(signatures, min_jaccard=0.8, threads=3), leaders)


def test_equal_signatures_stand_for_each_other_at_the_highest_threshold():
    signatures = np.repeat(made_signatures(500, 0), 3, axis=0)
    assert text_leaders(signatures, min_jaccard=1.0).tolist() == (np.arange(1500) // 3 * 3).tolist()


@pytest.mark.parametrize(
    ("min_jaccard", "banding"), [(0.8, Banding(21, 6)), (0.5, Banding(42, 3)), (1.0, Banding(1, 128))]
)
def test_banding_is_the_widest_that_misses_one_pair_in_a_hundred_at_most(min_jaccard, banding):
    assert choose_banding(PERMUTATIONS, min_jaccard, 0.01) == banding
    assert banding.found(min_jaccard) >= 0.99
    assert banding.rows == 128 or Banding(128 // (banding.rows + 1), banding.rows + 1).found(min_jaccard) < 0.99


@pytest.mark.parametrize("min_jaccard", [0, 1.5])
def test_threshold_out_of_range_is_refused(min_jaccard):
    with pytest.raises(ValueError, match="min_jaccard"):
        text_leaders(made_signatures(4, 0), min_jaccard=min_jaccard)


def test_signatures_of_another_type_are_refused():
    with pytest.raises(ValueError, match="uint64"):
        text_leaders(np.zeros((3, 4), np.uint64), min_jaccard=0.9)


def test_no_signatures_have_no_leaders():
    assert text_leaders(np.zeros((0, 128), np.uint32), min_jaccard=0.8).tolist() == []
