"""Weights solved for from pictures: before its first step the tokenizer codes like k-means on patches, or better."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tokenmill.demo.scenes import render, scene
from tokenmill.errors import RecipeError
from tokenmill.settings_tokenizer import TokenizerTraining
from tokenmill.tokenize.nearest import nearest
from tokenmill.tokenize.vision_frames import embedded, latents, pixels
from tokenmill.train.vision_codebook import Codebook
from tokenmill.train.vision_data import as_pixels
from tokenmill.train.vision_model import build_model
from tokenmill.train.vision_run import FROZEN, TokenizerRun
from tokenmill.train.vision_start_pictures import start_from_pictures

SHAPE = {
    "base_channels": 96, "hidden_size": 96, "codebook_size": 64, "embed_dim": 16, "latent_channels": 16,
}  # fmt: skip


def settings(**changes: Any) -> TokenizerTraining:
    fields = {"start": "pictures", "shape": SHAPE, "steps": 4, "learning_rate": 2e-4, "rise_steps": 20}
    return TokenizerTraining.model_validate(fields | changes)


def scenes(first: int, count: int, side: int = 32) -> torch.Tensor:
    return as_pixels([render(scene(first + number), side)[None] for number in range(count)])


def psnr_db(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(10 * torch.log10(4 / (one - other).square().mean()))


def by_patches(training: torch.Tensor, held_out: torch.Tensor, count: int) -> torch.Tensor:
    """What k-means on 8x8 patches makes of pictures."""

    def rows(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pixel_unshuffle(x[:, 0], 8).permute(0, 2, 3, 1).flatten(0, 2)

    codebook = Codebook.of(torch.zeros(count, 192))
    codebook.settle(rows(training), generator=torch.Generator().manual_seed(0))
    found = codebook.embedding_VD[nearest(rows(held_out), codebook.embedding_VD)]
    cells = held_out.shape[-1] // 8
    grid = found.reshape(len(held_out), cells, cells, 192).permute(0, 3, 1, 2)
    return torch.nn.functional.pixel_shuffle(grid, 8)[:, None]


@pytest.fixture(scope="module")
def run() -> TokenizerRun:
    torch.set_num_threads(1)
    wanted = settings()
    begun = TokenizerRun(wanted, build_model(wanted), torch.device("cpu"))
    assert begun.needs_pictures()
    begun.start_from(torch.split(scenes(0, 64), 32))
    return begun


def test_start_codes_held_out_pictures_about_as_well_as_k_means_on_patches(run: TokenizerRun) -> None:
    held_out = scenes(10_000, 24)
    with torch.inference_mode():
        codes = run.model.quantize(latents(run.model, held_out))
        back = pixels(run.model, embedded(run.model, codes), 1)
    ours, theirs = psnr_db(back, held_out), psnr_db(by_patches(scenes(0, 64), held_out, 64), held_out)
    assert ours > theirs - 0.3
    assert len(codes.unique()) > 32


@pytest.mark.parametrize("width", [96, 128])
def test_latents_are_principal_components_whatever_the_picture_beside_them(width: int) -> None:
    torch.manual_seed(0)
    model = build_model(settings(shape=SHAPE | {"base_channels": width, "hidden_size": width}))
    training = scenes(0, 24)[:, 0]
    start_from_pictures(model, training, generator=torch.Generator().manual_seed(0))
    flat = torch.full((1, 1, 3, 32, 32), 0.5)
    both = torch.cat([flat, scenes(10_000, 1)], dim=-1)
    with torch.inference_mode():
        alone, beside = latents(model, flat)[..., 1, 1], latents(model, both)[..., 1, 1]
    assert float((alone - beside).norm()) < 0.03 * float(alone.norm())


def test_level_of_a_flat_picture_survives(run: TokenizerRun) -> None:
    for level in (-0.8, 0.0, 0.7):
        flat = torch.full((1, 1, 3, 64, 64), level)
        with torch.inference_mode():
            back = pixels(run.model, latents(run.model, flat), 1)
        assert float(back.mean()) == pytest.approx(level, abs=0.2)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"base_channels": 64, "hidden_size": 64}, r"base_channels of 96 or 128 \(found 64\)"),
        ({"num_res_blocks": 1}, "num_res_blocks 0"),
        ({"embed_dim": 48, "latent_channels": 48}, "32 at most"),
    ],
)
def test_shapes_this_start_does_not_know_are_refused(changes: dict[str, int], what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        build_model(settings(shape=SHAPE | changes))


def test_start_is_taken_up_by_average_and_codebook_and_training_goes_on_from_it(run: TokenizerRun) -> None:
    pairs = zip(run.model.state_dict().values(), run.average.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert torch.equal(run.codebook.sums_VD, run.model.quantize.embedding.weight)
    batch = scenes(0, 16)
    rows = [run.advance(batch) for _ in range(3)]
    assert rows[-1]["l2"] < rows[0]["l2"] < 0.1
    assert not run.needs_pictures()


def test_frozen_encoder_and_codebook_stay_and_learn_afterwards() -> None:
    small = {"base_channels": 32, "hidden_size": 32, "codebook_size": 32, "embed_dim": 4, "latent_channels": 4}
    wanted = settings(start="scratch", shape=small, warm_up_steps=0, freeze_encoder_steps=2, rise_steps=1)
    begun = TokenizerRun(wanted, build_model(wanted), torch.device("cpu"))
    batch = scenes(0, 4)
    for changes in (False, False, True):
        before = {name: value.clone() for name, value in begun.model.state_dict().items()}
        begun.advance(batch)
        moved = {name for name, value in begun.model.named_parameters() if not torch.equal(value, before[name])}
        assert any(name.startswith("decoder.up_block") for name in moved)
        assert any(name.startswith("encoder.") for name in moved) == changes
        assert ("quantize.embedding.weight" in moved) == changes
        assert any(name.startswith(FROZEN) for name in moved) == changes
