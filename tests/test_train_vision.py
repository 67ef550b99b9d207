"""Training a vision tokenizer: it learns, its codebook lives, and a killed run ends like an uninterrupted one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tokenmill.errors import RecipeError, RunError
from tokenmill.tokenize.nearest import nearest
from tokenmill.tokenize.vision import load_vision_tokenizer
from tokenmill.train.vision_codebook import Codebook, perplexity
from tokenmill.train.vision_data import Pool, batch, pyramid
from tokenmill.train.vision_export import export_run
from tokenmill.train.vision_measure import psnr_db
from tokenmill.train.vision_objective import reconstruct
from tokenmill.train.vision_recipe import Batches, Shape, VisionRecipe, load_recipe
from tokenmill.train.vision_run import VisionRun, build_model, learning_rate, train
from tokenmill.train.vision_sources import load_pool
from tokenmill.train.vision_tokenizer import main

RECIPES = Path(__file__).parent.parent / "train" / "recipes"
SCENES_ONLY = Pool(())


def tiny(**changes: object) -> VisionRecipe:
    """A recipe of seconds: 32 channels, 16-pixel scenes, codebook from the third step."""
    fields: dict[str, object] = {
        "shape": Shape(base_channels=32, hidden_size=32, codebook_size=32),
        "batches": Batches(side=16, pictures=16, windows=0.25),
        "steps": 8,
        "warm_up_steps": 3,
        "rise_steps": 2,
        "revive_every": 2,
        "measure_every": 0,
        "decoder_bfloat16": False,
    }
    return VisionRecipe.model_validate(fields | changes)


def weights(run: VisionRun) -> list[torch.Tensor]:
    return [*run.model.state_dict().values(), *run.average.state_dict().values(), run.codebook.uses_V]


def test_quantized_forward_passes_its_gradient_straight_to_the_encoder() -> None:
    recipe = tiny()
    model = build_model(recipe.shape, seed=1)
    pixels = batch(SCENES_ONLY, recipe.batches, seed=1, step=0)
    made = reconstruct(model, pixels, commitment=0.0)
    made.loss.backward()
    first = model.encoder.conv_in.weight.grad
    assert made.codes_N is not None
    assert first is not None and float(first.abs().sum()) > 0
    assert model.quantize.embedding.weight.grad is None


def test_training_lowers_the_loss() -> None:
    run = VisionRun(tiny(steps=40, warm_up_steps=25), SCENES_ONLY)
    rows = [run.advance() for _ in range(25)]
    assert sum(row["l2"] for row in rows[-5:]) < 0.7 * sum(row["l2"] for row in rows[:5])


def test_run_killed_between_checkpoints_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = VisionRun(tiny(), SCENES_ONLY)
    train(whole, tmp_path / "whole")
    train(VisionRun(tiny(), SCENES_ONLY), tmp_path / "killed", until=5)
    lost = VisionRun(tiny(), SCENES_ONLY)
    lost.load(tmp_path / "killed")
    lost.advance()  # past its checkpoint, then gone
    resumed = VisionRun(tiny(), SCENES_ONLY)
    train(resumed, tmp_path / "killed")
    assert resumed.step == whole.step == 8
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))


def test_run_already_finished_does_nothing_more(tmp_path: Path) -> None:
    train(VisionRun(tiny(steps=4), SCENES_ONLY), tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    train(VisionRun(tiny(steps=4), SCENES_ONLY), tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4]


def test_exported_run_opens_as_a_tokenizer(tmp_path: Path) -> None:
    recipe = tiny(steps=4)
    train(VisionRun(recipe, SCENES_ONLY), tmp_path / "run")
    figures = export_run(tmp_path / "run", tmp_path / "model", scenes=2)
    tokenizer = load_vision_tokenizer(tmp_path / "model")
    assert tokenizer.codebook_size == 32
    assert figures["psnr_scenes_db"] > 0
    assert tokenizer.encode_images(np.zeros((1, 16, 24, 3), np.uint8)).shape == (1, 2, 3)


def test_export_of_a_run_without_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no checkpoint"):
        export_run(tmp_path, tmp_path / "model")


def test_batch_is_a_function_of_seed_and_step() -> None:
    photograph = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    pool, settings = Pool((pyramid(photograph),)), Batches(side=16, windows=0.3)
    batches = [batch(pool, settings, seed=1, step=step) for step in range(12)]
    again = [batch(pool, settings, seed=1, step=step) for step in reversed(range(12))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))
    assert not torch.equal(batches[0], batch(pool, settings, seed=2, step=0))
    assert {tuple(pixels.shape) for pixels in batches} <= {
        (16, 1, 3, 16, 16), (4, 1, 3, 32, 32), (1, 1, 3, 64, 64), (4, 4, 3, 16, 16)
    }  # fmt: skip
    assert all(pixels.abs().max() <= 1 for pixels in batches)


def test_learning_rate_climbs_stays_and_ends_at_zero() -> None:
    recipe = VisionRecipe(steps=100, rise_steps=10, fall_share=0.5, learning_rate=1.0)
    rates = [learning_rate(recipe, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[20] == rates[49] == 1.0
    assert rates[75] == pytest.approx(0.5)
    assert rates[100] == 0


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


def test_folder_of_photographs_is_read_and_an_empty_one_refused(tmp_path: Path) -> None:
    folder = tmp_path / "pictures" / "below"
    folder.mkdir(parents=True)
    Image.new("RGB", (300, 200), (200, 30, 40)).save(folder / "red.png")
    pool = load_pool(VisionRecipe(photographs=(str(tmp_path),)))
    assert [size.shape for size in pool.photographs[0]] == [(96, 144, 3), (128, 192, 3), (192, 288, 3)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="empty"):
        load_pool(VisionRecipe(photographs=(str(tmp_path / "empty"),)))


def test_packaged_photographs_leave_out_the_heldout() -> None:
    from tokenmill.demo.photographs import photographs

    pool = load_pool(VisionRecipe(photographs=("packages",), clips=()))
    assert 6 <= len(pool.photographs) <= len([p for p in photographs() if not p.heldout])


def test_recipe_in_the_repository_is_valid_and_an_unknown_key_is_exit_code_2(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES / "vision_tokenizer.yaml", steps=5)
    assert (recipe.steps, recipe.shape.codebook_size) == (5, 2048)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("shape: {bass_channels: 32}\n")
    with pytest.raises(RecipeError, match=r"wrong.yaml: shape.bass_channels"):
        load_recipe(wrong)
    assert main([str(wrong), "--out", str(tmp_path)]) == 2
