"""The report: complete, honest about what is missing, self-contained, and deaf to what samples try to tell browsers."""

from __future__ import annotations

import io
import json
from base64 import b64decode
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests import tiny

from tokenmill.demo.scenes import motion, render, render_motion, scene
from tokenmill.generate.write_video import mp4
from tokenmill.manifests.identity import digest_of, short
from tokenmill.manifests.records import Counts
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.report import report_page, write_report
from tokenmill.pipelines.report_charts import ticks
from tokenmill.pipelines.report_data import StageCounts
from tokenmill.pipelines.report_funnel import sum_faults
from tokenmill.pipelines.report_html import element, join
from tokenmill.pipelines.report_pictures import Album
from tokenmill.pipelines.report_scores import bins, thresholds
from tokenmill.pipelines.report_training import smoothed, thinned
from tokenmill.recipe import Recipe, check_recipe

_VOID = {"meta", "img", "br", "hr"}
_LOADING = {"src", "href", "data", "action", "srcset", "xlink:href", "poster"}


class Page(HTMLParser):
    """Checks nesting while reading, and keeps tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def recipe_for(data: Path, root: str, **changes: Any) -> Recipe:
    return check_recipe(tiny.recipe(data, root, changes), "tiny")


def page_of(recipe: Recipe, **options: Any) -> Page:
    store = open_store(recipe.root, recipe.storage)
    chain = Chain(recipe=recipe, options=ChainOptions(work=frozenset(), quiet=True, **options))
    return Page(report_page(store, recipe, chain))


def write_training(store: Store, steps: int = 40) -> None:
    rows = [{"step": n + 1, "loss": 7 - n / 10, "loss_text": 6 - n / 10, "loss_vision": 7.5 - n / 10, "tokens": 500,
             "step_s": 0.5, "data_wait_s": 0.01, "memory_gib": 1.0} for n in range(steps)]  # fmt: skip
    store.put(
        "checkpoints/main/metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode() + b'{"step": 4'
    )


@pytest.fixture(scope="module")
def page(finished) -> Page:
    return page_of(recipe_for(finished.data, str(finished.root)))


def test_report_of_planned_data_names_every_source_reason_and_snapshot(finished, page):
    recipe = recipe_for(finished.data, str(finished.root))
    chain = Chain(recipe=recipe, options=ChainOptions(work=frozenset(), quiet=True))
    for stage in ("ingest", "select", "choose", "tokenize"):
        for source, snapshot in getattr(chain, stage).items():
            assert source in page.text
            assert short(snapshot.digest) in page.text
            for reason in (*snapshot.counts.dropped, *snapshot.counts.failed):
                assert reason in page.text
    assert "✗" not in page.text


def test_report_without_training_says_so_plainly(page):
    for sentence in ("No training has been logged yet.", "has not been evaluated yet", "Nothing has been drawn"):
        assert sentence in page.text


def assert_self_contained(page: Page) -> None:
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name in _LOADING:
            allowed = {"a": "#", "video": "data:video/mp4;base64,"}.get(tag, "data:image/")
            assert value.startswith(allowed), (tag, name, value[:60])
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)


def test_report_is_self_contained_and_every_picture_is_described(page):
    assert_self_contained(page)
    for tag, description in (("img", "alt"), ("svg", "aria-label")):
        described = [value for found, name, value in page.attributes if (found, name) == (tag, description)]
        assert len(described) == page.tags[tag] >= 10
        assert all(described)


def test_report_shows_a_copy_beside_the_sample_that_was_kept(page):
    assert "exact duplicate" in page.text
    assert "dropped, the same bytes" in page.text


def test_report_shows_reconstructions_of_pictures_and_clips(page):
    assert page.text.count(" dB") >= 6
    assert any(value.endswith(", decoded") for _, name, value in page.attributes if name == "alt")


def test_report_plays_a_clip_beside_what_its_codes_decode_to(page):
    videos = [value for tag, name, value in page.attributes if (tag, name) == ("video", "src")]
    assert len(videos) == page.tags["video"] == 2
    with av.open(io.BytesIO(b64decode(videos[0].partition(",")[2]))) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        shown = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
    times, frames = zip(*shown, strict=True)
    assert len(frames) == 8  # of the second that is a clip, at 8 frames a second
    assert times[1] - times[0] == pytest.approx(1 / 8)
    left, right = np.stack(frames)[:, :, :32].astype(float), np.stack(frames)[:, :, -32:].astype(float)
    assert np.abs(left - right).mean() < 30
    assert np.abs(left[0] - left[-1]).mean() > 1  # it moves


def test_report_after_training_draws_curves_baselines_and_pictures(finished, tmp_path):
    recipe = recipe_for(finished.data, str(finished.copy(tmp_path / "root")))
    store = open_store(recipe.root)
    write_training(store)
    rows = [{"step": step, "loss": 6.0, "loss_text": None, "loss_vision": 7 - step / 20} for step in (20, 40)]
    store.put("checkpoints/main/evaluation.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    about = {"vocabulary": {"name": "bytes"}, "vision": None, "plan": "another", "step": 40, "files": {"model": "00"}}
    store.put("checkpoints/main/export/tokenmill.json", json.dumps(about).encode())
    from tokenmill.pipelines.evaluation import evaluation_name
    from tokenmill.pipelines.exported import find_export
    from tokenmill.pipelines.generation import generated_name

    exported = find_export(store, "main")
    row = {"modality": "image", "kind": "codes", "ids": 64, "training_ids": 900.0, "share_of_vision": 0.9, "loss": 4.0,
           "bigram_loss": 5.0, "unigram_loss": 6.0, "unigram_entropy": 5.5}  # fmt: skip
    gain = {"documents": 12, "true": 4.0, "shuffled": 4.1, "none": 4.2, "gain": 0.1, "gain_error": 0.01}
    measured = {"documents": {"image": 12}, "losses": [row], "captions": {"image": gain}}
    store.put(evaluation_name(exported, 200), json.dumps(measured).encode())
    name = generated_name(exported, recipe.generate)
    drawn = {"settings": recipe.generate.model_dump(), "step": 40,
             "pictures": [{"prompt": "<i>a red circle", "seed": 3, "file": "a.png"},
                          {"prompt": "it moves", "seed": 4, "file": "b.mp4", "fps": 8.0, "frames": 8, "grid": [4, 8]}]
            }  # fmt: skip
    store.put(name, json.dumps(drawn).encode())
    clip = mp4(render_motion(motion(1), 8, 32), 8.0)
    store.put(f"{Path(name).parent}/b.mp4", clip)
    Image.fromarray(render(scene(1), 64)).save(tmp_path / "root" / Path(name).parent / "a.png")
    page = page_of(recipe)
    assert page.tags["polyline"] == 5, "two curves of each modality, and one of what is held out of vision"
    assert "bigrams 4.50" in page.text  # diluted by the ends of rows, as the curve is
    assert "✓ below all three" in page.text
    assert "yes, 10 standard errors" in page.text
    assert "“<i>a red circle”" in page.text
    assert "trained on another plan" in page.text
    films = [value for tag, attribute, value in page.attributes if (tag, attribute) == ("video", "src")]
    assert clip in [b64decode(film.partition(",")[2]) for film in films]


def test_report_of_a_run_that_stopped_early_ends_where_it_stopped(finished, tmp_path):
    root = finished.copy(tmp_path / "root")
    (root / "tokenize").rename(tmp_path / "away")
    page = page_of(recipe_for(finished.data, str(root)))
    assert "Nothing is tokenized yet." in page.text
    assert "Kept pictures" in page.text


def test_report_before_anything_ran_is_a_page_too(finished, tmp_path):
    page = page_of(recipe_for(finished.data, str(tmp_path / "nothing")))
    assert "Nothing is indexed yet." in page.text


def test_report_is_written_below_the_root_and_writes_nothing_else(finished, tmp_path):
    recipe = recipe_for(finished.data, str(finished.copy(tmp_path / "root")))
    before = {entry.path for entry in open_store(recipe.root).files()}
    chain = Chain(recipe=recipe, options=ChainOptions(work=frozenset(), quiet=True))
    path = write_report(recipe, chain)
    assert Path(path).stat().st_size < 4_000_000
    assert {entry.path for entry in open_store(recipe.root).files()} - before == {"reports/main.html"}


def test_report_of_a_remote_root_shows_the_same_pictures(finished, page):
    remote = open_store("memory://report-test/root")
    here = open_store(str(finished.root))
    for entry in here.files():
        remote.put(entry.path, here.read_bytes(entry.path))
    there = page_of(recipe_for(finished.data, remote.url))
    assert there.tags["img"] == page.tags["img"]


def test_hostile_captions_and_keys_stay_text(tmp_path):
    data = tmp_path / "data"
    (data / "photos").mkdir(parents=True)
    captions = ["<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "</figcaption></main>", "&lt;b&gt; ${x}"]
    names = ["<svg onload=alert(3)>.png", "' onmouseover='alert(4).png", "plain.png", "$body.png"]
    for number, name in enumerate(names):
        (data / "photos" / name).write_bytes(tiny.picture(number, 96))
    (data / "photos" / "<td><script>.png").write_bytes(b"<script>alert(5)</script>")
    rows = [json.dumps({"file": name, "caption": text}) + "\n" for name, text in zip(names, captions, strict=True)]
    (data / "photos" / "captions.jsonl").write_text("".join(rows))
    value = tiny.recipe(data, str(tmp_path / "root"), {"filter.image.rules": {"size": "min_side_px < 90"}})
    value["sources"] = {"photos": value["sources"]["photos"]}
    kept = tiny.recipe(data, str(tmp_path / "root"))
    kept["sources"] = value["sources"]
    for mapping in (value, kept):
        recipe = check_recipe(mapping, "hostile")
        chain = Chain(recipe=recipe, options=ChainOptions(quiet=True))
        assert chain.select["photos"].counts.rows_in == 5
        page = page_of(recipe)
        assert_self_contained(page)
        for text in captions:
            assert " ".join(text.split()) in page.text or any(text in value for _, _, value in page.attributes)


@given(st.text(), st.text())
def test_element_gives_back_exactly_the_text_and_attribute_put_in(text, attribute):
    class Reader(HTMLParser):
        data, title, tags = "", "", 0

        def handle_starttag(self, tag, attrs):
            self.tags += 1
            self.title = dict(attrs).get("title") or ""

        def handle_data(self, data):
            self.data += data

    reader = Reader()
    reader.feed(element("p", text, title=attribute))
    reader.close()
    assert (reader.tags, reader.data, reader.title) == (1, text, attribute)


def test_join_leaves_markup_alone_and_none_out():
    assert join("<", None, [element("b", 1), 2.5]) == "&lt;<b>1</b>2.5"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("score >= 5.5", [(5.5, ">=")]),
        ("3 < score AND score <= -1e-3", [(-0.001, "≤"), (3.0, ">")]),
        ("score BETWEEN 2 AND 4.5", [(2.0, "≥"), (4.5, "≤")]),
        ("other >= 3 OR other_score < 1", []),
        ("NOT flag", []),
    ],
)
def test_thresholds_of_a_rule_are_found_either_way_round(rule, expected):
    found = list(thresholds({"name": rule}, "score"))
    assert sorted(level.value for level in found) == sorted(value for value, _ in expected)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.lists(st.floats(-1e6, 1e6), max_size=2))
def test_bins_hold_thresholds_and_nearly_all_values(values, levels):
    array = np.array(values)
    edges, log = bins(array, levels)
    assert np.all(np.diff(edges) > 0)
    assert all(edges[0] <= level <= edges[-1] for level in levels)
    assert edges[0] > 0 or not log
    assert len(ticks(float(edges[0]), float(edges[-1]), log=log)) <= 12


def test_sums_that_do_not_hold_are_named():
    ingest = StageCounts(stage="ingest", counts=Counts(rows_in=5, kept=4, out=4, failed={"empty": 1}), units=1)
    select = StageCounts(stage="select", counts=Counts(rows_in=3, kept=3, out=3), units=1)
    assert sum_faults([ingest, select]) == ["select took in 3 of the 4 that ingest gave"]
    assert sum_faults([ingest]) == []


def test_album_keeps_to_its_budget_and_says_what_it_left_out():
    album = Album(budget=20_000)
    noise = np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8)
    shown = [album.picture(noise, "<noise>") for _ in range(10)]
    assert album.spent <= 20_000
    assert album.refused == sum(picture.startswith("<div") for picture in shown) > 0
    assert all("&lt;noise&gt;" in picture for picture in shown)


@given(st.integers(2, 2000))
def test_curves_keep_their_ends_and_their_level(number):
    points = [(float(n), 3.0) for n in range(number)]
    drawn = thinned(smoothed(points))
    assert len(drawn) <= 301
    assert drawn[0][0] == 0 and drawn[-1][0] == number - 1
    assert all(abs(y - 3.0) < 1e-9 for _, y in drawn)


def test_report_digest_of_the_run_follows_from_the_snapshots(finished, page):
    recipe = recipe_for(finished.data, str(finished.root))
    chain = Chain(recipe=recipe, options=ChainOptions(work=frozenset(), quiet=True))
    digests = []
    for stage in ("ingest", "split", "score", "duplicates", "select", "choose", "tokenize"):
        for found in getattr(chain, stage).values():
            digests += [snapshot.digest for snapshot in (found if isinstance(found, tuple) else (found,))]
    assert digest_of([*digests, chain.plan.description["snapshot"]]) in page.text
