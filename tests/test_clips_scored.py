"""The stage `score` on clips: one decode for all, known pans, gates, halves, and what names the columns."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from tests import tiny, tiny_clip
from tests.harness import trusted

from tokenmill import cli
from tokenmill.demo.clip_folder import encode_mp4
from tokenmill.errors import RecipeError, RunError
from tokenmill.filters import scorer as scorers
from tokenmill.filters.clip import Sampling
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines import decoding, score_worker
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.checks import check_chain
from tokenmill.pipelines.decode_video import VideoDecoder
from tokenmill.pipelines.report import report_page
from tokenmill.pipelines.score_worker import ScoreWorker
from tokenmill.pipelines.scoring_pass import CLIPS_VERSION, ScorerSpec, scoring_pass
from tokenmill.recipe import check_recipe

FPS = 8
SAMPLING = {"fps": 4, "short_side_px": 24}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two films: one of three clips of two seconds (still, in motion, still and dark), one of a single clip."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "data" / "clips").mkdir(parents=True)
    rng = np.random.default_rng(0)
    wall = rng.integers(90, 250, (64, 96, 3), np.uint8).repeat(2, axis=0)[:64].astype(np.uint8)
    still, moving = [wall] * 16, [np.roll(wall, 3 * step, axis=1) for step in range(16)]
    dark = [wall // 4] * 16
    encode_mp4(folder / "data/clips/first.mp4", np.stack([*still, *moving, *dark]), FPS)
    encode_mp4(folder / "data/clips/second.mp4", np.stack(moving), FPS)
    (folder / "data/clips/captions.jsonl").write_text('{"file": "second.mp4", "caption": "a wall, in passing"}\n')
    tiny_clip.linear_head(tiny_clip.write_folder(folder / "clip") / "head.pth")
    _chain(folder, folder / "root", {}).snapshots("split")
    return folder


@pytest.fixture(autouse=True, scope="module")
def small_scorers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, made in {"stir": "Stir", "stir_model": "StirModel", "levels": "Levels"}.items():
            patch.setitem(scorers.BUILT_IN, name, f"tests.small_scorers:{made}")
        yield


@dataclass(frozen=True, kw_only=True)
class Together:
    """What all scorers in one pass left; how often each frame of each film was asked for, and what decoders did."""

    tables: dict[str, pl.DataFrame]
    files: dict[str, str]
    sampled: Counter[tuple[str, int]]
    did: Counter[str]


@pytest.fixture(scope="module")
def together(place, small_scorers) -> Together:
    with pytest.MonkeyPatch.context() as patch:
        counts, decoders = _count_frames(patch)
        tables = _scored(place, place / "together", _everything(place), **{"execution.decode_threads": 1})
    did = sum((decoder.counts for decoder in decoders), Counter())
    return Together(tables=tables, files=_files(place / "together"), sampled=counts, did=did)


def _count_frames(patch: pytest.MonkeyPatch) -> tuple[Counter[tuple[str, int]], set[VideoDecoder]]:
    """Count the frames scorers ask for, and note the decoders, which count what they make."""
    counts: Counter[tuple[str, int]] = Counter()
    decoders: set[VideoDecoder] = set()
    real = VideoDecoder.sample

    def sample(self, path, *rest, **how):
        decoders.add(self)
        found = real(self, path, *rest, **how)
        counts.update((Path(path).name, int(number)) for number in found.numbers)
        return found

    patch.setattr(VideoDecoder, "sample", sample)
    return counts, decoders


def _chain(place: Path, root: Path, asked: dict[str, Any], **changes: Any) -> Chain:
    scenes = {"content": None, "fades": None, "min_seconds": 0.5, "max_seconds": 2}
    settings = {
        "filter.video": {"scorers": asked, "scenes": scenes, "frames": SAMPLING},
        "execution.unit_rows": 3,
        "execution.decode_threads": 2,
    }
    value = tiny.recipe(place / "data", str(root), settings | changes, sources=["clips"])
    return Chain(recipe=check_recipe(value, "test"), options=ChainOptions(quiet=True))


def _scored(place: Path, root: Path, asked: dict[str, Any], **changes: Any) -> dict[str, pl.DataFrame]:
    for stage in ("ingest", "split"):  # done once
        shutil.copytree(place / "root" / stage, root / stage)
    return _tables(_chain(place, root, asked, **changes))


def _tables(chain: Chain) -> dict[str, pl.DataFrame]:
    return {
        snapshot.folder.config.settings["scorer"]: pl.concat(snapshot.folder.read_rows(c) for c in snapshot.commits)
        for snapshot in chain.snapshots("score")
    }


def _files(root: Path) -> dict[str, str]:
    found = trusted(open_store(str(root)))
    return {path: digest for path, digest in found.items() if path.startswith("score/")}


def _everything(place: Path) -> dict[str, Any]:
    """Scorers of clips and of pictures, with and without a model, behind gates, and those of captions."""
    model = {"model": str(place / "clip"), "head": str(place / "clip" / "head.pth"), "device": "cpu", "batch_size": 2}
    return {
        "stir": {},
        "stir_model": {"when": "min_side_px >= 32"},
        "levels": {"frames": 3, "reduce": "max", "when": "stir > 5"},
        "resolution": {},
        "sharpness": {"frames": "all", "reduce": "median"},
        "perceptual_hash": {},
        "aesthetic": model | {"frames": 3, "reduce": "min", "when": "stir > 5"},
        "nsfw": model | {"frames": 2},
        "text_coverage": {"frames": 2, "reduce": "mean", "when": "nsfw < 2"},
        "caption_quality": {},
    }


def test_each_frame_is_decoded_once_for_all_scorers(together):
    assert together.sampled == Counter(
        [("first.mp4", number) for number in range(0, 48, 2)] + [("second.mp4", number) for number in range(0, 16, 2)]
    )
    assert together.did["converted"] == 32, "and none beside"
    assert 32 <= together.did["decoded"] <= 64, "no frame of the films came out of the decoder twice"
    assert {table.height for table in together.tables.values()} == {4}
    assert all(table["fail_reason"].null_count() == 4 for table in together.tables.values())


def test_scores_of_clips_are_what_their_frames_say(together):
    found = together.tables
    stir = found["stir"]["stir"].to_list()
    assert [value > 5 for value in stir] == [False, True, False, True]
    assert found["stir"]["num_seen"].to_list() == [8] * 4
    assert [len(rows) for rows in found["stir"]["stir_rows"]] == [0, 24, 0, 24], "frames of 24 rows"
    assert found["resolution"]["width_px"].to_list() == [96] * 4, "of the film"
    assert found["resolution"]["min_side_px"].to_list() == [64] * 4
    for column in ("level", "level_word", "level_list"):
        assert found["levels"][column].is_not_null().to_list() == [False, True, False, True], "the gate"
    assert found["aesthetic"]["aesthetic"].null_count() == 2
    assert found["text_coverage"]["text_coverage"].null_count() == 0
    assert found["caption_quality"]["caption_words"].to_list() == [None, None, None, 4]
    assert found["sharpness"]["sharpness"].null_count() == 0


# What (CLIPS_VERSION) gives. Frames that are chosen, shrunk or put together otherwise need another version.
GOLDEN = {
    1: {
        "stir": [0.0, 19.0921, 0.0, 19.0856],
        "most_stir": [0.0, 23.295, 0.0, 23.2077],
        "level": [None, 167.816, None, 167.825],
        "sharpness": [3212.31, 3079.71, 208.938, 3085.4],
    }
}


def test_scores_of_clips_of_this_version_are_golden(together):
    tables = {column: table[column] for table in together.tables.values() for column in table.columns}
    for column, values in GOLDEN[CLIPS_VERSION].items():
        assert tables[column].to_list() == [v and pytest.approx(v, rel=1e-2) for v in values], column


@pytest.mark.parametrize("names", [("levels", "stir"), ("text_coverage", "nsfw")])
def test_scorer_of_clips_gives_the_same_files_alone_and_in_company(names, place, together, tmp_path):
    _scored(place, tmp_path, {name: _everything(place)[name] for name in names})
    alone = _files(tmp_path)
    assert len(alone) > 4 and alone.items() <= together.files.items()


def test_two_operators_and_threads_leave_the_files_of_one_thread(place, together, tmp_path, monkeypatch):
    def in_halves(self, job):
        there = ScoreWorker(self._pass, self._open_reader)
        parts = [there.compute(pickle.loads(pickle.dumps(chunk))) for chunk in self.prepare(job)]
        assert "_reader" not in vars(there), "the half with the models decodes nothing"
        return self.complete(job, parts)

    monkeypatch.setattr(ScoreWorker, "__call__", in_halves)
    _scored(place, tmp_path, _everything(place), **{"execution.decode_threads": 3})
    assert _files(tmp_path) == together.files


@pytest.mark.parametrize(("gated", "num_held"), [("sharpness", 0), ("nsfw", 0), ("levels", 4)])
def test_frames_are_held_only_for_scorers_that_want_batches(gated, num_held, place, tmp_path, monkeypatch):
    held: list[bool] = []
    real = ScoreWorker._prepared

    def prepared(self, keys, samples, specs):
        held.extend(sample.picture.has_frames for sample in samples)
        return real(self, keys, samples, specs)

    monkeypatch.setattr(ScoreWorker, "_prepared", prepared)
    settings = {**_everything(place)[gated], "when": "stir > 5"}
    found = _scored(place, tmp_path, {"stir": {}, gated: settings})
    assert sum(held) == num_held and len(held) == 4
    column = next(iter(found[gated].drop("key").columns))
    assert found[gated][column].is_not_null().to_list() == [False, True, False, True]


def test_chunks_of_clips_do_not_show_in_scores_without_a_model(place, together, tmp_path, monkeypatch):
    names = ("stir", "levels", "sharpness")
    monkeypatch.setitem(score_worker._CHUNK_BYTES, "video", 1)
    chunks: Counter[int] = Counter()
    real = ScoreWorker._prepared

    def prepared(self, keys, *rest):
        chunks[len(keys)] += 1
        return real(self, keys, *rest)

    monkeypatch.setattr(ScoreWorker, "_prepared", prepared)
    found = _scored(place, tmp_path, {name: _everything(place)[name] for name in names})
    assert chunks == Counter({1: 4})
    assert found["stir"].equals(together.tables["stir"])
    assert found["sharpness"].equals(together.tables["sharpness"])
    assert found["levels"].drop("level_list").equals(together.tables["levels"].drop("level_list"))


def test_clip_that_cannot_be_decoded_is_one_failed_row_of_every_scorer_that_looks(place, tmp_path):
    data = tmp_path / "data" / "clips"
    data.mkdir(parents=True)
    for film in (place / "data" / "clips").iterdir():
        shutil.copy2(film, data)  # with its time: the mark it was indexed by
    asked = {"stir": {}, "sharpness": {"frames": 2}, "resolution": {}, "caption_quality": {}}
    shutil.copytree(place / "root" / "ingest", tmp_path / "root" / "ingest")
    shutil.copytree(place / "root" / "split", tmp_path / "root" / "split")
    chain = _chain(tmp_path, tmp_path / "root", asked)
    assert chain.snapshots("split")
    whole = (data / "second.mp4").read_bytes()
    (data / "second.mp4").write_bytes(whole[: len(whole) // 2])  # after its clips were found
    found = _tables(chain)
    assert found["caption_quality"]["fail_reason"].null_count() == 4
    for name in ("stir", "sharpness", "resolution"):
        table = found[name].select("key", "fail_reason", "fail_stage").drop_nulls()
        assert [row[1:] for row in table.rows()] == [("changed_since_ingest", "score")]
        assert table["key"][0].startswith("second.mp4")


def test_scorer_that_fails_in_its_own_way_ends_the_run_and_is_no_bad_sample(place, tmp_path, monkeypatch):
    def score(self, batch):
        raise ValueError("a fault of the scorer's own")

    monkeypatch.setattr("tests.small_scorers.Stir.score", score)
    with pytest.raises(RunError, match="a fault of the scorer's own"):
        _scored(place, tmp_path, {"stir": {}})


def test_scorers_of_captions_decode_no_clip(place, tmp_path, monkeypatch):
    _, decoders = _count_frames(monkeypatch)
    found = _scored(place, tmp_path, {"caption_quality": {}})
    assert found["caption_quality"]["caption_words"].to_list() == [None, None, None, 4]
    assert not decoders


def test_clips_with_lists_among_their_scores_are_selected_carried_and_shown(place, tmp_path, capsys):
    for stage in ("ingest", "split"):
        shutil.copytree(place / "root" / stage, tmp_path / "root" / stage)
    asked = {"stir": {}, "levels": {"frames": 2}}
    selection = {"filter.video.rules": {"moves": "stir > 5"}, "filter.video.carry": ["stir_rows", "level"]}
    chain = _chain(place, tmp_path / "root", asked, **selection)
    assert [one.counts.out for one in chain.snapshots("tokenize")] == [1], "the other has no caption"
    scores = []
    for archive in (tmp_path / "root" / "tokenize").rglob("*.tar"):
        with tarfile.open(archive) as members:
            scores += [json.loads(members.extractfile(m).read())["scores"] for m in members if m.name.endswith(".json")]
    assert [one["stir_rows"] for one in scores] == [list(range(24))]
    page = report_page(open_store(chain.recipe.root), chain.recipe, chain)
    assert "Kept clips, three frames of each" in page
    strips = re.findall(r'<figure class="tile strip">.*?</figure>', page)
    assert [strip.count("<img") for strip in strips] == [3] * 4
    assert "num_seen" in page and "<b>stir_rows</b>" not in page
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(chain.recipe.model_dump(mode="json")))
    query = "SELECT key, stir_rows, level FROM video ORDER BY key"
    assert cli.main(["inspect", str(tmp_path / "recipe.yaml"), "--sql", query]) == 0
    assert cli.main(["inspect", str(tmp_path / "recipe.yaml"), "--json", "--sql", query]) == 0
    assert cli.main(["inspect", str(tmp_path / "recipe.yaml")]) == 0
    assert cli.main(["status", str(tmp_path / "recipe.yaml")]) == 0
    assert "moves" in capsys.readouterr().out


def _digest(name: str, *more: ScorerSpec, sampling: Sampling | None = None, when: str = "", **choice: Any) -> str:
    scoring = scoring_pass("video", [ScorerSpec(name=name, settings={}, when=when, **choice), *more], sampling)
    (spec,) = (one for one in scoring.specs if one.name == name)
    return scoring.config(spec, decoding.DecodeLimits()).digest


def test_frames_and_sampling_name_the_columns_of_clips():
    digests = [
        _digest("levels"),
        _digest("levels", sampling=Sampling(fps=3.0)),
        _digest("levels", sampling=Sampling(short_side_px=320)),
        _digest("levels", frames=3),
        _digest("levels", frames=3, reduce="min"),
        _digest("levels", frames="all"),
        _digest("stir"),
        _digest("stir", sampling=Sampling(fps=3.0)),
    ]
    assert len(set(digests)) == len(digests)
    assert _digest("levels") == _digest("levels", frames=1, sampling=Sampling(fps=2.0, short_side_px=256))
    assert _digest("levels", frames=3) == _digest("levels", frames=3, reduce="mean")
    assert _digest("caption_quality") == _digest("caption_quality", sampling=Sampling(fps=3.0))
    gates = [ScorerSpec(name="levels", settings={}, frames=frames) for frames in (1, 2)]
    assert len({_digest("stir", gate, when="level > 3") for gate in gates}) == 2, "a gate reads other values"


def test_columns_of_pictures_and_texts_are_named_as_before_there_were_frames():
    gate = ScorerSpec(name="resolution", settings={})
    colours = ScorerSpec(name="colourfulness", settings={"longest_side_px": 256}, when="min_side_px > 3")
    pictures = scoring_pass("image", [gate, colours])
    texts = scoring_pass("text", [ScorerSpec(name="minhash", settings={})], Sampling(fps=9.0))
    digests = [one.config(one.specs[-1], decoding.DecodeLimits()).digest for one in (pictures, texts)]
    assert digests == [
        "021252444627599bb457d8298a45681e73efb3d11043f88ba8cfd89c4b5ec9cb",
        "faeb0044e2069e230a83b0b304114aac3415ca69217e52efce350f163d9d77c8",
    ]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("filter.image.scorers.levels", {"frames": 3}, "filter.image.scorers.levels.frames: a sample of image has no"),
        ("filter.text.scorers.minhash", {"reduce": "min"}, "filter.text.scorers.minhash.reduce: a sample of text has"),
        ("filter.video.scorers.stir", {"frames": 3}, "filter.video.scorers.stir.frames: this scorer takes whole clips"),
        ("filter.video.scorers.levels", {"reduce": "min"}, "levels.reduce: is about several frames; give frames"),
        ("filter.video.scorers.caption_quality", {"frames": 2}, "frames: this scorer reads captions and no frame"),
        ("filter.video.scorers.levels", {"frames": 0}, "frames: Value error, is a number of frames, 1 to 1000, or all"),
        ("filter.video.scorers.levels", {"frames": "some"}, "is a number of frames, 1 to 1000, or all, found 'some'"),
        (
            "filter.video.scorers.levels",
            {"frames": 2, "reduce": "sum"},
            "'min', 'max', 'mean' or 'median', found 'sum'",
        ),
        ("filter.video.scorers.minhash", {}, "filter.video.scorers.minhash: takes text, not image or video"),
        ("filter.image.scorers.stir", {}, "filter.image.scorers.stir: takes video, not image"),
        ("filter.image.frames", {"fps": 2}, "filter.image.frames: a sample of image has none; only under filter.video"),
        ("filter.video.frames", {"fps": 0}, "filter.video.frames.fps: Input should be greater than 0"),
        ("filter.video.frames", {"side": 3}, "filter.video.frames.side: no such key; allowed: fps, short_side_px"),
    ],
)
def test_recipe_with_frames_where_there_are_none_is_refused(tmp_path, key, value, told):
    recipe = tiny.recipe(tmp_path, str(tmp_path / "root"), {key: value})
    with pytest.raises(RecipeError) as caught:
        check_chain(Chain(recipe=check_recipe(recipe, "test")))
    assert told in str(caught.value)
