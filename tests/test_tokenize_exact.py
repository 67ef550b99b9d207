"""The same codes as the port's own `encode`, on thousands of codes and at any size; ties are counted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from tokenmill.errors import RecipeError
from tokenmill.tokenize.nearest import nearest, ties
from tokenmill.tokenize.preprocess import normalise, resize
from tokenmill.tokenize.vision import load_vision_tokenizer
from tokenmill.tokenize.vision_changes import changed_codes, exact_tokenizer
from tokenmill.tokenize.vision_emu3 import SHIPPED, Emu3VisionTokenizer, load

SIZES = [(64, 48), (48, 64), (120, 200), (256, 256), (720, 1280)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads wait for each other where other tests run beside these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of small width, random but for its codebook: 8,192 codes spread over its own latents."""
    from transformers.models.emu3 import Emu3VQVAE, Emu3VQVAEConfig

    torch.manual_seed(7)
    shape: dict[str, Any] = {"base_channels": 32, "channel_multiplier": [1, 1, 1, 2], "hidden_size": 64}
    model = Emu3VQVAE(Emu3VQVAEConfig(codebook_size=8192, num_res_blocks=1, **shape))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.normal_(module.running_mean)
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    found = load(folder).latents(photographs((256, 256))[:, None]).permute(0, 1, 3, 4, 2).flatten(0, 3)
    drawn = found[torch.randint(len(found), (8192,))]
    model.quantize.embedding.weight.data = drawn + torch.randn_like(drawn) * found.std(0) / 4
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Emu3VisionTokenizer:
    return load(folder)


def photographs(size: tuple[int, int]) -> NDArray[np.uint8]:
    from skimage import data

    return np.stack([resize(picture, size) for picture in (data.astronaut(), data.chelsea(), data.coffee())])


def port(folder: Path) -> Any:
    """The port as shipped, in its own layout."""
    from transformers.models.emu3 import Emu3VQVAE

    return Emu3VQVAE.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def port_codes(model: Any, images_BHWC: NDArray[np.uint8]) -> NDArray[np.uint32]:
    pixels = torch.from_numpy(np.moveaxis(normalise(images_BHWC), -1, 1).copy())
    sizes = torch.tensor([images_BHWC.shape[1:3]] * len(images_BHWC))
    return np.stack([codes.numpy() for codes in model.encode(pixels, sizes).image_tokens]).astype(np.uint32)


def wrong_and_tied(
    tokenizer: Emu3VisionTokenizer,
    frames_BTHWC: NDArray[np.uint8],
    ours: NDArray[np.uint32],
    theirs: NDArray[np.uint32],
) -> tuple[int, int]:
    """How many codes differ from the reference's, and how many more differ but are ties."""
    latents = tokenizer.latents(frames_BTHWC).permute(0, 1, 3, 4, 2).flatten(0, 3)
    one, other = (torch.from_numpy(codes.astype(np.int64).ravel()) for codes in (ours, theirs))
    tied = (one != other) & ties(latents, one, other, tokenizer.model.quantize.embedding.weight)
    return int((one != other).sum() - tied.sum()), int(tied.sum())


def test_codes_of_images_are_those_of_the_reference_at_every_size(
    folder: Path, tokenizer: Emu3VisionTokenizer, record_property: Any
) -> None:
    reference, seen, tied = port(folder), set(), 0
    for size in SIZES:
        images = photographs(size)[: 3 if size[0] < 128 else 1]
        ours, theirs = tokenizer.encode_images(images), port_codes(reference, images)
        wrong, some = wrong_and_tied(tokenizer, images[:, None], ours, theirs)
        assert (wrong, ours.shape) == (0, (len(images), size[0] // 8, size[1] // 8))
        seen |= set(theirs.ravel().tolist())
        tied += some
    record_property("ties", tied)
    assert len(seen) >= 500
    assert tied <= 5  # of 16,700


def flat(height: int, width: int) -> NDArray[np.uint8]:
    """Pages of one colour, with and without a mark: the deviations that norms divide by are next to nothing."""
    pictures = np.full((4, height, width, 3), 128, np.uint8)
    pictures[1], pictures[2:] = 0, 255
    pictures[3, height // 2 : height // 2 + 8, width // 2 : width // 2 + 24] = 0
    return pictures


def test_codes_of_pictures_of_one_colour_are_those_of_the_reference(
    folder: Path, tokenizer: Emu3VisionTokenizer
) -> None:
    images = flat(128, 160)
    ours, theirs = tokenizer.encode_images(images), port_codes(port(folder), images)
    wrong, tied = wrong_and_tied(tokenizer, images[:, None], ours, theirs)
    assert wrong == 0
    assert tied <= 2  # of 1,280


def test_codes_of_video_are_those_of_windows_encoded_apart(folder: Path, tokenizer: Emu3VisionTokenizer) -> None:
    clip = np.stack([np.roll(photographs((96, 160))[:2], 5 * step, axis=2) for step in range(8)], axis=1)
    reference, whole = port(folder), torch.full((1, 2), 8 * 1024)  # the port would crop time and height
    ours = tokenizer.encode_video(clip)
    pixels = torch.from_numpy(np.moveaxis(normalise(clip), -1, 2).copy())
    with torch.inference_mode():
        theirs = np.stack([
            np.concatenate([reference.encode(film[None, first : first + 4], whole).image_tokens[0] for first in (0, 4)])
            for film in pixels
        ]).astype(np.uint32)  # fmt: skip
    assert ours.shape == theirs.shape == (2, 2, 12, 20)
    windows = clip.reshape(4, 4, *clip.shape[2:])
    wrong, tied = wrong_and_tied(tokenizer, windows, ours, theirs)
    assert wrong == 0
    assert tied <= 1
    assert len(np.unique(theirs)) >= 500


def test_codes_of_shipped_weights_on_photographs_are_those_of_the_reference() -> None:
    tokenizer, images = load(SHIPPED), photographs((256, 384))
    ours, theirs = tokenizer.encode_images(images), port_codes(port(SHIPPED), images)
    wrong, tied = wrong_and_tied(tokenizer, images[:, None], ours, theirs)
    assert wrong == 0
    assert tied <= 1  # of 4,608
    assert len(np.unique(theirs)) >= 500


def test_codes_are_the_same_by_any_number_of_threads(tokenizer: Emu3VisionTokenizer) -> None:
    images = photographs((256, 256))[:2]
    alone = tokenizer.encode_images(images)
    torch.set_num_threads(2)
    assert np.array_equal(tokenizer.encode_images(images), alone)
    torch.set_num_threads(1)


def test_pixels_decoded_by_parts_are_those_of_the_reference(folder: Path, tokenizer: Emu3VisionTokenizer) -> None:
    codes = tokenizer.encode_images(photographs((64, 48)))
    with torch.inference_mode():
        made = port(folder).decode(torch.from_numpy(codes.astype(np.int64)))
    theirs = ((made + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).numpy()
    apart = np.abs(tokenizer.decode_images(codes).astype(int) - theirs)
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-3


def test_batches_of_many_pixels_run_in_equal_parts_of_whole_frames(
    tokenizer: Emu3VisionTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr("tokenmill.tokenize.vision_device.FRAME_PIXELS", 3 * 64 * 80 + 1)
    spied = Emu3VisionTokenizer(tokenizer.model, tokenizer.options, fingerprint="")
    whole = spied._features
    spied._features = lambda frames: (seen.append(frames[..., 0].numel()), whole(frames))[1]  # type: ignore[func-returns-value]
    clip = np.repeat(photographs((64, 80))[:1, None], 4, axis=1)
    codes = spied.encode_video(clip)
    assert seen == [2 * 64 * 80] * 2  # not 3 and 1: another number rounds differently
    monkeypatch.undo()
    assert np.array_equal(codes, tokenizer.encode_video(clip))


def test_nearest_codes_are_those_of_the_whole_matrix_ties_and_all() -> None:
    drawn = torch.Generator().manual_seed(2)
    codes = torch.randn(5000, 4, generator=drawn).mul_(8).round_()  # a grid: equal distances and equal codes abound
    latents = torch.randn(3000, 4, generator=drawn).mul_(8).round_()
    whole = (latents.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * latents @ codes.T).argmin(1)
    assert torch.equal(nearest(latents, codes), whole)
    assert torch.equal(nearest(latents, codes, chunk=7), whole)


def test_tie_is_what_rounding_cannot_tell_apart_and_no_more() -> None:
    codes = torch.tensor([[0.0, 0, 0, 0], [2.0, 0, 0, 0], [2.001, 0, 0, 0]])
    middle = torch.tensor([[1.0, 0, 0, 0], [1.0 + 1e-7, 0, 0, 0], [1.01, 0, 0, 0]])
    assert ties(middle, torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1]), codes).tolist() == [True, True, False]
    assert ties(middle[:1], torch.tensor([0]), torch.tensor([2]), codes).tolist() == [False]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_changed_codes_of_lower_precision_are_counted_against_float32(folder: Path, dtype: str) -> None:
    images = photographs((64, 64))
    exact = exact_tokenizer(folder, dtype=dtype, batch_size=4)
    assert exact is not None
    found = changed_codes(load(folder, dtype=dtype, batch_size=4), exact, images)
    assert found.codes == 3 * 64
    assert 0 < found.share < 1
    assert changed_codes(exact, load(folder), images).changed == 0
    assert exact_tokenizer(folder, batch_size=4) is None


def test_checkpoint_with_missing_keys_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    weights = broken(folder, tmp_path)
    del weights["encoder.conv_in.weight"], weights["quant_conv.conv.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(RecipeError, match=r"2 missing \(encoder\.conv_in\.weight, quant_conv\.conv\.bias\)"):
        load(tmp_path)


def test_checkpoint_with_keys_too_many_or_of_another_shape_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    weights = broken(folder, tmp_path)
    weights["encoder.extra.weight"] = torch.zeros(2)
    weights["quantize.embedding.weight"] = torch.zeros(64, 4)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(RecipeError, match=r"unexpected \(encoder\.extra.*another shape \(quantize\.embedding"):
        load(tmp_path)


def broken(folder: Path, to: Path) -> dict[str, torch.Tensor]:
    shutil.copy(folder / "config.json", to)
    return load_file(folder / "model.safetensors")


def test_checkpoint_that_is_cut_off_or_described_wrongly_is_a_recipe_error(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    described = json.loads((tmp_path / "config.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(described | {"base_channels": "wide"}))
    with pytest.raises(RecipeError, match="'base_channels'"):
        load_vision_tokenizer(tmp_path)
    shutil.copy(folder / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(RecipeError, match="not fully covered"):
        load_vision_tokenizer(tmp_path)


def test_pictures_that_are_turned_or_read_only_have_the_codes_of_their_copies(tokenizer: Emu3VisionTokenizer) -> None:
    images = photographs((64, 48))
    turned = images[:, ::-1, :, ::-1]
    turned.flags.writeable = False
    assert np.array_equal(tokenizer.encode_images(turned), tokenizer.encode_images(turned.copy()))


def test_folder_of_another_kind_of_model_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    described = json.loads((tmp_path / "config.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(described | {"model_type": "llama"}))
    with pytest.raises(RecipeError, match="'llama', not 'emu3_vqgan'"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dtype": "int8"}, "dtype 'int8' is not one of float32, bfloat16, float16"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"compile": "yes"}, "compile 'yes'"),
        ({"cuda_graphs": True}, "cuda_graphs needs compile"),
        ({"device": 0}, "device 0 must be a name"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
        ({"batchsize": 4}, "unknown option batchsize"),
    ],
)
def test_wrong_option_is_a_recipe_error_that_tells_what_is_allowed(options: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        load_vision_tokenizer("scenes", **options)


def test_no_frames_are_an_error_and_not_a_clip_of_nothing(tokenizer: Emu3VisionTokenizer) -> None:
    with pytest.raises(ValueError, match="0 frames"):
        tokenizer.encode_video(np.zeros((1, 0, 64, 64, 3), np.uint8))
