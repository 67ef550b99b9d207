"""What scoring asks of a scorer: its own columns, all of them, a value a sample, of their types; and no more bytes."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest
from tests import tiny

from tokenmill.errors import RecipeError, RunError, SampleError
from tokenmill.filters import scorer as scorers
from tokenmill.filters.clip import Sampling
from tokenmill.pipelines import decoding
from tokenmill.pipelines.archive_json import finite
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.score_chunk import chunk_sizes, held_bytes
from tokenmill.pipelines.scoring_pass import ScorerSpec, scoring_pass
from tokenmill.recipe import check_recipe


class Odd:
    """Says what the test wants it to say."""

    name, version, takes, batch_size, views = "odd", 1, "image", 1, ()
    columns: ClassVar[Mapping[str, Any]] = {"odd": pl.Float32()}
    fingerprint = scorers.fingerprint("odd", 1, {})
    says: ClassVar[Callable[[Sequence[Any]], Mapping[str, Any]]]

    def score(self, batch: Sequence[Any]) -> Mapping[str, Any]:
        return type(self).says(batch)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny.write_pictures(folder)
    return folder


@pytest.fixture
def odd(monkeypatch) -> type[Odd]:
    monkeypatch.setitem(scorers.BUILT_IN, "odd", f"{__name__}:Odd")
    return Odd


def _scored(data: Path, root: Path, asked: dict[str, Any]) -> dict[str, pl.DataFrame]:
    changes = {"filter.image": {"scorers": asked}}
    value = tiny.recipe(data, str(root), changes, sources=["photos"])
    chain = Chain(recipe=check_recipe(value, "test"), options=ChainOptions(quiet=True))
    return {
        snapshot.folder.config.settings["scorer"]: pl.concat(snapshot.folder.read_rows(c) for c in snapshot.commits)
        for snapshot in chain.snapshots("score")
    }


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ({"odd": ["high"]}, "scorer 'odd': 'high' is no Float32 for 'odd'"),
        ({"odd": [1.0, 2.0]}, "scorer 'odd': 2 values of 'odd' for 1 samples"),
        ({}, "scorer 'odd': returned the columns none; it offers odd"),
        ({"odd": [1.0], "more": [1]}, "scorer 'odd': returned the columns more, odd; it offers odd"),
    ],
)
def test_scorer_that_says_something_else_than_it_offers_ends_the_run_by_name(data, tmp_path, odd, says, told):
    odd.says = staticmethod(lambda batch: says)
    with pytest.raises(RunError) as caught:
        _scored(data, tmp_path, {"odd": {}})
    assert told in str(caught.value)


def test_scorer_may_say_null_nan_and_whole_numbers(data, tmp_path, odd):
    values = iter([None, float("nan"), 3])
    odd.says = staticmethod(lambda batch: {"odd": [next(values)]})
    found = _scored(data, tmp_path, {"odd": {}})["odd"].filter(pl.col("fail_reason").is_null())
    assert sorted(map(str, found["odd"])) == ["3.0", "None", "nan"]


@pytest.mark.parametrize(
    ("column", "told"),
    [("colourfulness", "colourfulness and odd both offer 'colourfulness'"), ("fail_reason", "tokenmill's own")],
)
def test_column_of_two_scorers_or_of_tokenmill_is_refused(odd, monkeypatch, column, told):
    monkeypatch.setattr(odd, "columns", {column: pl.Float32()})
    specs = [ScorerSpec(name=name, settings={}) for name in ("colourfulness", "odd", "sha256")]
    with pytest.raises(RecipeError) as caught:
        scoring_pass("image", specs)
    assert told in str(caught.value)


def test_scorer_of_captions_alone_opens_no_picture_and_scores_broken_ones(data, tmp_path, monkeypatch):
    opened: Counter[bytes] = Counter()
    real = decoding.open_image
    monkeypatch.setattr(decoding, "open_image", lambda data, **how: opened.update([data]) or real(data, **how))
    alone = _scored(data, tmp_path / "alone", {"caption_quality": {}})
    assert not opened
    found = _scored(data, tmp_path / "beside", {"caption_quality": {}, "colourfulness": {}})
    assert set(opened.values()) == {1}
    assert found["colourfulness"]["fail_reason"].drop_nulls().to_list() == ["not_an_image"]
    assert found["caption_quality"]["fail_reason"].null_count() == found["caption_quality"].height
    assert found["caption_quality"].equals(alone["caption_quality"])
    assert found["caption_quality"]["caption_words"].drop_nulls().len() == 3


def test_failures_are_counted_within_a_unit(tmp_path):
    (tmp_path / "photos").mkdir()
    reader = decoding.SampleReader(
        "photos", {"kind": "images", "url": str(tmp_path / "photos")}, decoding.DecodeLimits(failure_budget=3)
    )
    fault = SampleError("corrupt", "of no kind")
    for _ in range(2):  # two units of one worker
        assert list(reader._counted([fault] * 3)) == [fault] * 3
    with pytest.raises(RunError, match="4 samples failed in a row"):
        list(reader._counted([fault] * 4))


def test_score_that_is_no_number_is_null_in_archives(data, tmp_path, odd):
    odd.says = staticmethod(lambda batch: {"odd": [float("nan")]})
    changes = {"filter.image": {"scorers": {"odd": {}}, "carry": ["odd"]}}
    value = tiny.recipe(data, str(tmp_path), changes, sources=["photos"])
    assert Chain(recipe=check_recipe(value, "test"), options=ChainOptions(quiet=True)).tokenize
    (path,) = tmp_path.glob("tokenize/*/*/**/*.tar")
    with tarfile.open(path) as archive:
        documents = [archive.extractfile(m).read() for m in archive if m.name.endswith(".json")]
    assert {json.loads(document)["scores"]["odd"] for document in documents} == {None}


def test_numbers_that_json_has_not_become_null():
    assert finite({"a": [1, 1e999, {"b": float("nan")}], "c": "NaN"}) == {"a": [1, None, {"b": None}], "c": "NaN"}


def test_setting_that_says_what_goes_without_saying_names_the_same_columns():
    def named(**settings):
        scoring = scoring_pass("image", [ScorerSpec(name="sharpness", settings=settings)])
        return scoring.config(scoring.specs[0], decoding.DecodeLimits()).digest

    assert named() == named(longest_side_px=512) != named(longest_side_px=None)
    assert len({named(longest_side_px=side) for side in (None, 256, 512)}) == 3


def test_chunks_of_a_slice_are_bounded_by_rows_and_by_what_is_held_of_each():
    files = pl.DataFrame({"length": [1000] * 100 + [200 * 2**20, 5]})
    assert list(chunk_sizes(held_bytes(files, None), 64, 2**27)) == [64, 37, 1]
    clips = pl.DataFrame(
        {"width_px": 1280, "height_px": 720, "start_frame": 24, "end_frame": [24 + 24 * 20] * 20 + [25], "fps": 24.0},
        schema={"width_px": pl.Int32, "height_px": pl.Int32, "start_frame": pl.Int64, "end_frame": pl.Int64,
                "fps": pl.Float64},
    )  # fmt: skip
    held = held_bytes(clips, Sampling(fps=2.0, short_side_px=256)).to_list()
    assert held[0] == pytest.approx(40 * 256 * 455 * 3, rel=0.01)
    assert held[-1] * 40 == pytest.approx(held[0], rel=0.01), "a clip of one frame holds that"
    assert list(chunk_sizes(held, 64, 2**27)) == [10, 10, 1]
    whole = held_bytes(clips.head(1), Sampling(fps=100.0, short_side_px=2160))
    assert whole.to_list() == [480 * 1280 * 720 * 3], "no frame twice, none enlarged"
    assert list(chunk_sizes(held[:0], 64, 2**27)) == []
