"""Vision tokenizers: the codes of the port for a quarter of the work, and windows that know nothing of each other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tokenmill.demo.scenes import motion, render, render_motion, scene
from tokenmill.errors import RecipeError
from tokenmill.tokenize.vision import load_vision_tokenizer
from tokenmill.tokenize.vision_emu3 import SHIPPED, Emu3VisionTokenizer, load
from tokenmill.tokenize.vision_frames import embedded, latents, pixels


@pytest.fixture(scope="module")
def port() -> Any:
    """The port at small width, with random weights everywhere (its batch norms too)."""
    from transformers.models.emu3 import Emu3VQVAE, Emu3VQVAEConfig

    torch.manual_seed(3)
    shape: dict[str, Any] = {"base_channels": 32, "channel_multiplier": [1, 1, 1, 2], "hidden_size": 64}
    model = Emu3VQVAE(Emu3VQVAEConfig(codebook_size=64, num_res_blocks=1, **shape))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.normal_(module.running_mean)
    return model.eval()


@pytest.fixture(scope="module")
def shipped() -> Emu3VisionTokenizer:
    return load(SHIPPED, batch_size=4)


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(5)) * 2 - 1


def moving(count: int, frames: int, side: int = 32) -> NDArray[np.uint8]:
    return np.stack([render_motion(motion(seed), frames, side) for seed in range(count)])


@torch.inference_mode()
def test_image_encoded_as_one_frame_gives_every_code_of_the_port(port: Any) -> None:
    images = noise(3, 3, 48, 64)
    reference = torch.stack(port.encode(images, torch.tensor([[48, 64]] * 3)).image_tokens)
    ours = port.quantize(latents(port, images[:, None]))[:, 0]
    assert reference.unique().numel() > 4
    assert torch.equal(ours, reference)


@torch.inference_mode()
def test_window_gives_every_code_of_the_port(port: Any) -> None:
    frames = noise(2, 4, 3, 32, 48)
    no_crop = torch.full((2, 2), 8 * 1024)  # the port would crop time and height by the picture's size
    reference = torch.stack(port.encode(frames, no_crop).image_tokens)
    assert torch.equal(port.quantize(latents(port, frames)), reference)


@torch.inference_mode()
def test_decoding_one_frame_gives_the_pixels_of_the_port(port: Any) -> None:
    codes = torch.randint(64, (2, 1, 6, 8), generator=torch.Generator().manual_seed(1))
    image = pixels(port, embedded(port, codes), frames=1)[:, 0]
    torch.testing.assert_close(image, port.decode(codes[:, 0]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(pixels(port, embedded(port, codes)), port.decode(codes), atol=1e-4, rtol=1e-4)


def test_video_windows_do_not_depend_on_each_other(shipped: Emu3VisionTokenizer) -> None:
    frames = moving(2, 12)
    codes = shipped.encode_video(frames)
    alone = [shipped.encode_video(frames[:, start : start + 4]) for start in (0, 4, 8)]
    assert codes.shape == (2, 3, 4, 4)
    assert np.array_equal(codes, np.concatenate(alone, axis=1))
    assert np.array_equal(
        shipped.decode_video(codes), np.concatenate([shipped.decode_video(part) for part in alone], axis=1)
    )


def test_image_and_motionless_window_have_the_same_codes(shipped: Emu3VisionTokenizer) -> None:
    images = np.stack([render(scene(seed), 64) for seed in range(3)])
    still = np.repeat(images[:, None], 4, axis=1)
    assert np.array_equal(shipped.encode_images(images), shipped.encode_video(still)[:, 0])


def test_round_trip_keeps_shapes_and_types(shipped: Emu3VisionTokenizer) -> None:
    images = np.stack([render(scene(seed), 64) for seed in range(5)])[:, :40]
    codes = shipped.encode_images(images)
    assert (codes.shape, codes.dtype) == ((5, 5, 8), np.uint32)
    assert codes.max() < shipped.codebook_size == 2048
    back = shipped.decode_images(codes)
    assert (back.shape, back.dtype) == (images.shape, np.uint8)
    assert np.array_equal(codes, shipped.encode_images(images))


def test_shipped_weights_rebuild_scenes_and_motion(shipped: Emu3VisionTokenizer) -> None:
    scenes = np.stack([render(scene(seed), 64) for seed in range(4_000_000, 4_000_008)])
    frames = moving(4, 8, side=64)
    assert mean_psnr_db(scenes, shipped.decode_images(shipped.encode_images(scenes))) > 26
    assert mean_psnr_db(frames, shipped.decode_video(shipped.encode_video(frames))) > 22


def mean_psnr_db(reference: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    axes = tuple(range(1, reference.ndim))
    error = ((reference.astype(float) - other) ** 2).mean(axis=axes)
    return float(np.mean(10 * np.log10(255**2 / error)))


def test_name_and_folder_load_the_same_tokenizer(shipped: Emu3VisionTokenizer, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(SHIPPED, copy)
    by_name, by_folder = load_vision_tokenizer("scenes", batch_size=4), load_vision_tokenizer(copy, batch_size=4)
    assert by_name.fingerprint == by_folder.fingerprint == shipped.fingerprint
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 3 << 20


def test_fingerprint_changes_with_weights_precision_and_batch_size(shipped: Emu3VisionTokenizer) -> None:
    changed = load(SHIPPED, batch_size=4)
    with torch.no_grad():
        changed.model.quantize.embedding.weight[0] += 1
    from tokenmill.tokenize.vision_emu3 import fingerprint

    fingerprints = [
        shipped.fingerprint,
        fingerprint(changed.model, changed.options),
        load(SHIPPED, batch_size=8).fingerprint,
        load(SHIPPED, batch_size=4, dtype="bfloat16").fingerprint,
    ]
    assert len(set(fingerprints)) == 4


@pytest.mark.parametrize("spec", ["no/such/folder", "scenes"])
def test_tokenizer_that_cannot_be_loaded_is_a_recipe_error(spec: str) -> None:
    options = {"dtype": "int3"} if spec == "scenes" else {}
    with pytest.raises(RecipeError, match=spec):
        load_vision_tokenizer(spec, **options)


def test_folder_with_pickled_weights_only_is_refused(shipped: Emu3VisionTokenizer, tmp_path: Path) -> None:
    shutil.copy(SHIPPED / "config.json", tmp_path)
    torch.save(shipped.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(RecipeError, match="vision tokenizer"):
        load(tmp_path)


@pytest.mark.parametrize("shape", [(1, 4, 60, 64, 3), (1, 3, 64, 64, 3), (0, 4, 64, 64, 3)])
def test_frames_of_a_wrong_shape_are_refused(shipped: Emu3VisionTokenizer, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiple"):
        shipped.encode_video(np.zeros(shape, np.uint8))


def test_code_outside_the_codebook_is_refused(shipped: Emu3VisionTokenizer) -> None:
    with pytest.raises(ValueError, match="2048"):
        shipped.decode_images(np.full((1, 2, 2), 2048, np.uint32))
