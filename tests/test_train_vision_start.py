"""Where a tokenizer's training begins: an image model that codes stills as before, or a tokenizer trained earlier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.movq import CODES, Movq, diffusers_names, movq

from tokenmill.demo.scenes import render, scene
from tokenmill.errors import RecipeError
from tokenmill.settings_tokenizer import TokenizerTraining
from tokenmill.tokenize.vision_frames import embedded, latents, pixels
from tokenmill.train.vision_data import as_pixels
from tokenmill.train.vision_model import build_model


@pytest.fixture(scope="module")
def image_model() -> Movq:
    return movq()


def started(path: Path, **settings: object) -> TokenizerTraining:
    return TokenizerTraining.model_validate({"start": {"from": str(path)}, **settings})


def stills() -> torch.Tensor:
    """Six scenes as windows of four equal frames."""
    return as_pixels([np.stack([render(scene(seed), 64)] * 4) for seed in range(6)])


@pytest.mark.parametrize("layout", ["movqgan", "diffusers", "wrapped"])
def test_video_model_begun_from_an_image_model_gives_its_codes_and_pixels_for_stills(
    tmp_path: Path, image_model: Movq, layout: str
) -> None:
    state = image_model.state_dict()
    if layout == "movqgan":
        torch.save(
            {"state_dict": {**state, "loss.discriminator.main.0.weight": torch.zeros(3)}}, tmp_path / "movq.ckpt"
        )
    elif layout == "diffusers":
        save_file(diffusers_names(state), tmp_path / "diffusion_pytorch_model.safetensors")
    else:
        save_file({f"model.{name}": value for name, value in state.items()}, tmp_path / "any.safetensors")
    path = {"movqgan": tmp_path / "movq.ckpt", "diffusers": tmp_path, "wrapped": tmp_path / "any.safetensors"}[layout]
    model = build_model(started(path))
    windows = stills()
    with torch.no_grad():
        codes, decoded = image_model(windows[:, 0])
        found = model.quantize(latents(model, windows))
        frames = pixels(model, embedded(model, codes[:, None]))
    assert len(codes.unique()) > 12
    assert float((found[:, 0] == codes).double().mean()) > 0.999
    assert float((frames - decoded[:, None]).abs().max()) < 2e-3 * float(decoded.abs().max())
    assert float((frames - decoded[:, None]).square().mean().sqrt()) < 1e-3 * float(decoded.std())


def test_window_begun_from_an_image_model_is_coded_as_the_mean_of_what_its_frames_say(
    tmp_path: Path, image_model: Movq
) -> None:
    torch.save(image_model.state_dict(), tmp_path / "movq.pt")
    model = build_model(started(tmp_path / "movq.pt"))
    moving = as_pixels([np.stack([render(scene(seed), 64) for seed in range(4)])])
    with torch.no_grad():
        expected = image_model.quant_conv(image_model.encoder(moving[0])).mean(0)
        found = latents(model, moving)[0, 0]
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)


def test_image_model_that_lacks_a_tensor_is_refused_by_its_name(tmp_path: Path, image_model: Movq) -> None:
    state = image_model.state_dict()
    del state["decoder.mid.attn_1.q.weight"]
    torch.save(state, tmp_path / "movq.pt")
    with pytest.raises(RecipeError, match=r"lacks 1: decoder\.middle_block\.attn_1\.q_proj\.weight"):
        build_model(started(tmp_path / "movq.pt"))


def test_image_model_with_a_tensor_of_another_shape_is_refused_with_both_shapes(
    tmp_path: Path, image_model: Movq
) -> None:
    state = {**image_model.state_dict(), "decoder.conv_in.weight": torch.zeros(64, 5, 3, 3)}
    torch.save(state, tmp_path / "movq.pt")
    with pytest.raises(RecipeError, match=r"decoder.conv_in.weight \(64, 5, 3, 3\) \(wanted \(64, 4, 3, 3\)\)"):
        build_model(started(tmp_path / "movq.pt"))


def test_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "callbacks": Movq}, tmp_path / "movq.ckpt")
    with pytest.raises(RecipeError, match="would run code"):
        build_model(started(tmp_path / "movq.ckpt"))


def test_file_of_another_model_is_refused(tmp_path: Path) -> None:
    save_file({"text_model.embeddings": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(RecipeError, match="no tensor of a MoVQGAN"):
        build_model(started(tmp_path / "other.safetensors"))


def test_tokenizer_trained_earlier_is_taken_up_and_an_incomplete_one_refused(tmp_path: Path) -> None:
    shape = {"base_channels": 32, "hidden_size": 32, "codebook_size": CODES}
    earlier = build_model(TokenizerTraining.model_validate({"shape": shape, "seed": 3}))
    earlier.save_pretrained(tmp_path / "earlier")
    again = build_model(started(tmp_path / "earlier"))
    assert all(torch.equal(a, b) for a, b in zip(earlier.parameters(), again.parameters(), strict=True))
    with pytest.raises(RecipeError, match=r"tokenizer.shape.codebook_size: 64, but the model"):
        build_model(started(tmp_path / "earlier", shape={**shape, "codebook_size": 64}))
    state = {name: value for name, value in earlier.state_dict().items() if name != "encoder.conv_in.bias"}
    save_file(state, tmp_path / "earlier" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=r"1 missing \(encoder.conv_in.bias\)"):
        build_model(started(tmp_path / "earlier"))


def test_start_that_names_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nothing is there"):
        build_model(started(tmp_path / "absent"))
