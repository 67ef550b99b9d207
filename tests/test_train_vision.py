"""Training a vision tokenizer: what a step sees, that it learns, and that its codebook lives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tests import raw_samples
from tests.conftest import S3Server

from tokenmill.errors import RecipeError, RunError, SampleError
from tokenmill.manifests.storage import open_store
from tokenmill.recipe import check_recipe, load_recipe
from tokenmill.settings_tokenizer import TokenizerBatches, TokenizerTraining
from tokenmill.tokenize.nearest import nearest
from tokenmill.train.vision_clips import ClipReader
from tokenmill.train.vision_codebook import Codebook, perplexity
from tokenmill.train.vision_data import Batches, steps_ahead
from tokenmill.train.vision_measure import psnr_db
from tokenmill.train.vision_model import build_model
from tokenmill.train.vision_objective import Objective
from tokenmill.train.vision_pictures import PixelCache, short_sides
from tokenmill.train.vision_run import TokenizerRun, learning_rate
from tokenmill.train.vision_samples import Place, Samples

CPU = torch.device("cpu")


def tiny(**changes: Any) -> TokenizerTraining:
    """Settings of seconds: 32 channels, crops of 16 pixels, codebook from the fourth step."""
    fields = {
        "shape": {"base_channels": 32, "hidden_size": 32, "codebook_size": 32},
        "batches": {"side": 16, "pictures": 16, "windows": 0.25, "larger": {2: 0.2}},
        "steps": 40, "warm_up_steps": 25, "rise_steps": 2,
    }  # fmt: skip
    return TokenizerTraining.model_validate(fields | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw shards: sixteen scenes, two moving ones; a picture that is none, a clip that is cut off."""
    path = tmp_path_factory.mktemp("samples")
    raw_samples.write_shard(path / "scenes", [*raw_samples.scenes(16), b"no picture at all"])
    raw_samples.write_clips(path / "clips", 2)
    (path / "clips" / "bad.mp4").write_bytes((path / "clips" / "0.mp4").read_bytes()[:900])
    return path


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return raw_samples.write_shard(folder / "scenes", [*raw_samples.scenes(16), b"no picture at all"])


def table_of(folder: Path) -> pl.DataFrame:
    """The scenes and both clips, one scene held out."""
    rows = rows_of(folder)[:16] + [raw_samples.clip_row(f"{number}.mp4") for number in range(2)]
    return raw_samples.listed(rows, held_out=(2,))


@pytest.fixture
def samples(folder: Path) -> Iterator[Samples]:
    opened = raw_samples.samples(folder, table_of(folder))
    yield opened
    opened.close()


def test_quantized_forward_passes_its_gradient_straight_to_the_encoder(samples: Samples) -> None:
    settings = tiny()
    model = build_model(settings)
    model.quantize.embedding.weight.requires_grad_(False)
    pixels = Batches(samples, settings.batches, seed=1)(0).pixels_BTCHW
    objective = Objective(settings.losses, settings.codebook, device=CPU)
    made = objective.generator(model, pixels, step=0, quantized=True)
    made.loss.backward()  # type: ignore[no-untyped-call]
    first = model.encoder.conv_in.weight.grad
    assert made.codes_N is not None
    assert first is not None
    assert float(first.abs().sum()) > 0
    assert set(made.terms) == {"l2", "commitment"}


@pytest.mark.parametrize("learning", ["ema", "loss"])
def test_training_lowers_the_loss_and_moves_the_codebook(samples: Samples, learning: str) -> None:
    settings = tiny(codebook={"learning": learning}, batches={"side": 16, "pictures": 16, "windows": 0, "larger": {}})
    batches = Batches(samples, settings.batches, seed=1)
    run = TokenizerRun(settings, build_model(settings), CPU)
    rows = []
    for step in range(30):
        if run.needs_codebook():
            run.settle_codebook(batches(number).pixels_BTCHW for number in range(100, 104))
            settled = run.model.quantize.embedding.weight.detach().clone()
        rows.append(run.advance(batches(step).pixels_BTCHW))
    assert sum(row["l2"] for row in rows[20:25]) < 0.7 * sum(row["l2"] for row in rows[:5])
    assert rows[-1]["perplexity"] > 4
    assert not torch.equal(settled, run.model.quantize.embedding.weight)


def test_bfloat16_learns_with_codes_of_full_precision(samples: Samples) -> None:
    pixels = Batches(samples, tiny().batches, seed=1)(0).pixels_BTCHW
    both = [tiny(warm_up_steps=0, precision=precision) for precision in ("fp32", "bf16")]
    one, two = (TokenizerRun(settings, build_model(settings), CPU).advance(pixels) for settings in both)
    assert two["l2"] == pytest.approx(one["l2"], rel=0.05)
    assert two["l2"] != one["l2"]
    assert two["perplexity"] == one["perplexity"]


def test_loss_that_is_no_number_ends_the_run_before_the_weights_change(samples: Samples) -> None:
    run = TokenizerRun(tiny(), build_model(tiny()), CPU)
    before = run.model.encoder.conv_in.weight.detach().clone()
    with pytest.raises(RunError, match="not a number"):
        run.advance(torch.full((16, 1, 3, 16, 16), math.nan))
    assert torch.equal(before, run.model.encoder.conv_in.weight)


def test_step_is_a_function_of_list_settings_seed_and_step_and_ranks_share_it(folder: Path, samples: Samples) -> None:
    settings = TokenizerBatches(side=16, pictures=16, windows=0.3, larger={2: 0.3}, recolour=0.5)
    whole = [Batches(samples, settings, seed=1)(step).pixels_BTCHW for step in range(10)]
    uncached = raw_samples.samples(folder, table_of(folder), cache_bytes=0)
    halves = [Batches(uncached, settings, seed=1, rank=rank, ranks=2) for rank in (0, 1)]
    again = {step: torch.cat([half(step).pixels_BTCHW for half in halves]) for step in reversed(range(10))}
    ahead = steps_ahead(Batches(uncached, settings, seed=1), 3, 10, threads=2)
    assert all(torch.equal(whole[step], again[step]) for step in range(10))
    assert all(torch.equal(made.pixels_BTCHW, whole[made.step]) for made in ahead)
    assert not torch.equal(whole[0], Batches(samples, settings, seed=2)(0).pixels_BTCHW)
    assert {tuple(pixels.shape) for pixels in whole} == {(16, 1, 3, 16, 16), (4, 1, 3, 32, 32), (4, 4, 3, 16, 16)}
    assert all(pixels.abs().max() <= 1 for pixels in whole)
    uncached.close()


def test_crop_does_not_hang_on_what_was_drawn_before(tmp_path: Path) -> None:
    """As a resumed run needs it: a panorama that decoding shrinks, and a picture that turns out to be cut off."""
    noise = np.random.default_rng(0).integers(0, 255, (200, 3000, 3), np.uint8)
    encoded = [raw_samples.png(noise), raw_samples.scenes(1)[0][:-900]]
    table = raw_samples.listed(raw_samples.write_shard(tmp_path / "scenes", encoded))
    fresh, used = (raw_samples.samples(tmp_path, table) for _ in range(2))
    for row in (0, 1):
        with pytest.raises(SampleError, match="too_small"):
            used.crop(row, 256, 1, np.random.default_rng(0))
    for side in (16, 32, 16):
        drawn = [np.random.default_rng(side) for _ in range(2)]
        crops = [one.crop(0, side, 1, rng) for one, rng in zip((fresh, used), drawn, strict=True)]
        assert np.array_equal(*crops)
        for one, rng in zip((fresh, used), drawn, strict=True):
            with pytest.raises(SampleError, match="corrupt"):
                one.crop(1, side, 1, rng)
        assert drawn[0].random() == drawn[1].random()


def test_held_out_samples_are_never_drawn_and_shares_are_kept(folder: Path) -> None:
    rows = rows_of(folder)[:16]
    for row in rows[:4]:
        row["source"] = "few"
    table = raw_samples.listed(rows, held_out=(0, 5))
    opened = raw_samples.samples(folder, table)
    batches = Batches(opened, TokenizerBatches(), seed=0, shares={"few": 3.0, "scenes": 1.0})
    rng = np.random.default_rng(0)
    drawn = [batches._pools[False].draw(rng) for _ in range(2000)]
    assert not {0, 5} & set(drawn)
    assert np.mean([row < 4 for row in drawn]) == pytest.approx(0.75, abs=0.04)
    opened.close()


def test_unreadable_samples_are_told_and_replaced_and_too_many_in_a_row_end_the_run(folder: Path) -> None:
    rows = rows_of(folder)
    changed = {**rows[1], "sha256": "0" * 64}
    clips = [raw_samples.clip_row(name) for name in ("0.mp4", "bad.mp4")]
    opened = raw_samples.samples(folder, raw_samples.listed([rows[0], changed, rows[16], *clips]))
    settings = TokenizerBatches(side=16, pictures=16, windows=0.3, larger={})
    found = [Batches(opened, settings, seed=3)(step) for step in range(12)]
    faults = {(fault.key, fault.reason) for data in found for fault in data.faults}
    assert {("00001", "changed_since_ingest"), ("00016", "not_an_image")} <= faults
    assert {key for key, _ in faults} == {"00001", "00016", "bad.mp4"}
    opened.close()
    hopeless = raw_samples.samples(folder, raw_samples.listed([rows[16]]))
    with pytest.raises(RunError, match=r"6 samples in a row could not be read, the last scenes/00016: not_an_image"):
        Batches(hopeless, settings, seed=3, failure_budget=5)(0)


def test_pictures_too_small_for_a_crop_are_passed_over_and_all_of_them_end_the_run(tmp_path: Path) -> None:
    encoded = [*raw_samples.scenes(6, side=24), *raw_samples.scenes(1, side=64, first=50)]
    rows = raw_samples.write_shard(tmp_path / "scenes", encoded)
    opened = raw_samples.samples(tmp_path, raw_samples.listed(rows))
    settings = TokenizerBatches(side=32, pictures=4, windows=0, larger={})
    made = Batches(opened, settings, seed=0)(0)
    assert made.pixels_BTCHW.shape == (4, 1, 3, 32, 32)
    assert made.faults == ()
    with pytest.raises(RunError, match="crop of 128 pixels"):
        Batches(opened, TokenizerBatches(side=128, pictures=4, windows=0, larger={}), seed=0)(0)


def test_picture_with_more_pixels_than_allowed_is_not_decoded(folder: Path) -> None:
    opened = raw_samples.samples(folder, raw_samples.listed(rows_of(folder)[:1]), max_pixels=1000)
    with pytest.raises(SampleError, match="too_many_pixels"):
        opened.picture(0)


def test_clip_reader_outlives_a_broken_clip_and_a_decoder_that_hangs(folder: Path) -> None:
    reader = ClipReader(timeout_s=60, max_pixels=1 << 24)
    place, ask = (str(folder / "clips"), {}), {"frames": 4, "short_side": 24}
    with pytest.raises(SampleError):
        reader.window(*place, "bad.mp4", seconds=0.0, **ask)
    first, later = (reader.window(*place, "0.mp4", seconds=seconds, **ask) for seconds in (0.0, 1.5))
    with pytest.raises(SampleError, match="no_frames"):
        reader.window(*place, "0.mp4", seconds=1.75, **ask)
    with pytest.raises(RunError, match="not there"):
        reader.window(*place, "gone.mp4", seconds=0.0, **ask)
    reader._timeout_s = 0.0
    with pytest.raises(SampleError, match="timeout"):
        reader.window(*place, "0.mp4", seconds=1.5, **ask)
    reader._timeout_s = 60.0
    assert np.array_equal(later, reader.window(*place, "0.mp4", seconds=1.5, **ask))
    assert first.shape == later.shape == (4, 24, 24, 3)
    assert not np.array_equal(first, later)
    reader.close()


def test_pictures_and_clips_on_an_object_store_are_read_in_ranges(folder: Path, s3_server: S3Server) -> None:
    root = s3_server.new_root()
    store = open_store(root, s3_server.options)
    for name in ("scenes/00000.tar", "clips/0.mp4"):
        store.put(name, (folder / name).read_bytes())
    here, there = (
        {name: Place(url=f"{base}/{name}", options=options) for name in ("scenes", "clips")}
        for base, options in ((str(folder), {}), (root, s3_server.options))
    )
    table = raw_samples.listed([rows_of(folder)[1], raw_samples.clip_row("0.mp4")])
    opened = [
        Samples(table, Place(url=root), places, cache_bytes=0, max_pixels=1 << 24, clip_timeout_s=60)
        for places in (here, there)
    ]
    pictures, windows = ([read(one) for one in opened] for read in (
        lambda one: one.picture(0), lambda one: one.first_window(1, 4, 32)))  # fmt: skip
    assert np.array_equal(*pictures)
    assert np.array_equal(*windows)
    for one in opened:
        one.close()


def test_short_sides_go_from_the_crop_to_the_picture() -> None:
    assert short_sides(64, 400) == [64, 96, 128, 192, 256, 384]
    assert short_sides(64, 4000) == [64, 96, 128, 192, 256, 384, 512]
    assert short_sides(512, 4000) == [512, 768, 1024]
    assert short_sides(64, 63) == []


def test_cache_keeps_what_fits_and_makes_the_rest_again() -> None:
    cache, made = PixelCache(100), []

    def make(name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        made.append(name)
        return np.zeros(60, np.uint8)

    for name in ("a", "b", "a", "b"):
        cache.get(name, lambda name=name: make(name))  # type: ignore[misc]
    assert made == ["a", "b", "b"]


def test_learning_rate_climbs_stays_and_ends_at_zero() -> None:
    settings = tiny(steps=100, rise_steps=10, fall_share=0.5, learning_rate=1.0, warm_up_steps=0)
    rates = [learning_rate(settings, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[20] == rates[49] == 1.0
    assert rates[75] == pytest.approx(0.5)
    assert rates[100] == 0
    cosine = settings.model_copy(update={"schedule": "cosine"})
    assert learning_rate(cosine, 90) < rates[90]
    assert learning_rate(settings.model_copy(update={"schedule": "constant"}), 99) == 1.0


def test_codebook_follows_its_latents_and_revives_the_dead() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(400, 4, generator=generator) + 5
    codebook = Codebook.of(torch.zeros(16, 4))
    codebook.embedding_VD[1:] -= 100
    codebook.sums_VD.copy_(codebook.embedding_VD)
    for _ in range(40):
        codebook.follow(latents, nearest(latents, codebook.embedding_VD), decay=0.8)
    assert perplexity(nearest(latents, codebook.embedding_VD), 16) == pytest.approx(1)
    torch.testing.assert_close(codebook.embedding_VD[0], latents.mean(0), atol=0.01, rtol=0)
    assert codebook.revive(latents, below=0.05, generator=generator) == 15
    assert perplexity(nearest(latents, codebook.embedding_VD), 16) > 8


def test_codebook_settles_on_clusters() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    latents = centres.repeat(30, 1) + 0.01 * torch.randn(90, 2, generator=torch.Generator().manual_seed(0))
    codebook = Codebook.of(torch.zeros(8, 2))
    codebook.settle(latents, generator=torch.Generator().manual_seed(0))
    assert float(torch.cdist(centres, codebook.embedding_VD).min(1).values.max()) < 0.1


def test_psnr_of_a_known_error_is_known() -> None:
    black = np.zeros((8, 8, 3), np.uint8)
    assert psnr_db(black, black + np.uint8(255)) == pytest.approx(0)
    assert psnr_db(black, black + np.uint8(16)) == pytest.approx(24.05, abs=0.01)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"stepps": 3}, r"tokenizer.stepps: no such key; allowed: run, sources"),
        ({"batches": {"pictures": 16}, "ranks": 2}, r"make 1 crops of 4 × side a step, which ranks \(2\) cannot share"),
        ({"batches": {"windows": 0.9}}, "shares of the steps; together they are 1.25"),
        ({"batches": {"larger": {1: 0.1}}}, "larger: 1: is how many times"),
        ({"start": {"path": 3}}, r"tokenizer.start"),
        ({"batches": {"side": 0}}, r"tokenizer.batches.side: .*greater than 0"),
        ({"shape": {"hidden_size": 32}}, "hidden_size: 32 is not base_channels × the last multiplier, 64"),
        ({"shape": {"embed_dim": 8}}, "latent_channels: 4, but embed_dim 8"),
        ({"shape": {"channel_multiplier": [1, 1, 2, 2], "hidden_size": 128}}, "without res blocks"),
        ({"shape": {"channel_multiplier": [1, 1]}}, "tokenizer.shape.channel_multiplier"),
        ({"steps": 200}, r"warm_up_steps: 200 \(200 from scratch where absent\) leave none of 200 steps"),
        ({"betas": [0.9, 1]}, r"tokenizer.betas"),
        ({"losses": {"perceptual": {"weight": 1}}}, "name the file of LPIPS"),
        ({"sources": {"a": 0}}, r"tokenizer.sources.a: .*greater than 0"),
    ],
)
def test_wrong_tokenizer_section_is_refused_with_its_key(section: dict[str, Any], message: str) -> None:
    recipe = {"root": "r", "sources": {"a": {"kind": "images", "url": "u"}}, "tokenizer": section}
    with pytest.raises(RecipeError, match=message):
        check_recipe(recipe, "r.yaml")


def test_run_of_train_may_not_share_its_folder_with_the_runs_of_tokenizers() -> None:
    recipe = {"root": "r", "sources": {"a": {"kind": "images", "url": "u"}}, "train": {"run": "tokenizers"}}
    with pytest.raises(RecipeError, match=r"train.run: .*checkpoints/tokenizers/ holds the runs of train-tokenizer"):
        check_recipe(recipe, "r.yaml")


def test_recipe_in_the_repository_is_valid() -> None:
    recipe = load_recipe(Path(__file__).parents[1] / "train" / "recipes" / "vision_tokenizer.yaml")
    assert recipe.tokenizer is not None
    assert recipe.tokenizer.sources.keys() <= recipe.sources.keys()
