"""IBQ and FSQ: the networks are transformers' own VQGAN, and every code is the one an exhaustive search finds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tests import small_vision
from tests.small_vision import IBQ_CODES, pictures, write_fsq, write_ibq

from tokenmill.errors import RecipeError
from tokenmill.tokenize.preprocess import normalise
from tokenmill.tokenize.vision import BUILT_IN, load_vision_tokenizer, vision_codebook_size, vision_fingerprint
from tokenmill.tokenize.vision_folder import vision_folder
from tokenmill.tokenize.vision_fsq import FiniteScalars
from tokenmill.tokenize.vision_ibq import largest_products
from tokenmill.tokenize.vocabulary import byte_vocabulary


@pytest.fixture(scope="module")
def ibq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ibq(tmp_path_factory.mktemp("vision") / "ibq")


@pytest.fixture(scope="module")
def fsq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fsq(tmp_path_factory.mktemp("vision") / "fsq", [8, 8, 8, 5, 5, 5])


def scaled(images_BHWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(normalise(images_BHWC), -1, 1).copy())


@torch.inference_mode()
def latents(tokenizer: Any, images_BHWC: np.ndarray) -> torch.Tensor:
    """Latents (N, D) in double precision, from the network's own convolutions."""
    network = tokenizer.network
    found: torch.Tensor = network.quant_conv(network.encoder(scaled(images_BHWC))).movedim(1, -1).flatten(0, 2)
    return found.double()


@torch.inference_mode()
def test_networks_are_those_of_another_implementation(ibq: Path) -> None:
    """Janus' tokenizer in transformers is the same VQGAN; its decoder counts levels from the other end."""
    from transformers.models.janus.configuration_janus import JanusVQVAEConfig
    from transformers.models.janus.modeling_janus import JanusVQVAEDecoder, JanusVQVAEEncoder

    shape: dict[str, Any] = {"base_channels": 32, "channel_multiplier": [1] * 5, "num_res_blocks": 1}
    config = JanusVQVAEConfig(**shape, latent_channels=32, double_latent=False)
    ours = load_vision_tokenizer(ibq).network  # type: ignore[attr-defined]
    encoder, decoder = JanusVQVAEEncoder(config), JanusVQVAEDecoder(config)
    encoder.load_state_dict(ours.encoder.state_dict())
    turned = {}
    for name, value in ours.decoder.state_dict().items():
        head, level, *rest = name.split(".")
        turned[f"up.{4 - int(level)}.{'.'.join(rest)}" if head == "up" else name] = value
    decoder.load_state_dict(turned)

    features = encoder.eval()(scaled(pictures(96)[:, :64]))
    assert features.shape == (6, 32, 4, 6)
    torch.testing.assert_close(ours.encoder(scaled(pictures(96)[:, :64])), features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.decoder(features), decoder.eval()(features.clone()), rtol=1e-4, atol=1e-4)


def test_parameters_of_the_released_size_are_those_of_the_release() -> None:
    """Emu3.5's tokenizer: 256 channels, 131,072 codes of 256 numbers; 455 million parameters, as its report says."""
    from tokenmill.tokenize.vision_ibq import Ibq
    from tokenmill.tokenize.vision_vqgan import vqgan_shape

    released = small_vision.shape(5, ch=256, ch_mult=[1, 1, 2, 2, 4], num_res_blocks=4, z_channels=256)
    with torch.device("meta"):
        network = Ibq(vqgan_shape({"ddconfig": released}, "r"), IBQ_CODES, 256)
    assert round(sum(value.numel() for value in network.parameters()) / 1e6) == 455
    assert network.spatial_factor == 16
    names = network.state_dict().keys()
    assert {"encoder.down.3.downsample.conv.weight", "encoder.down.4.attn.3.proj_out.bias"} <= names
    assert {"decoder.up.4.upsample.conv.weight", "decoder.up.3.block.0.nin_shortcut.weight"} <= names
    assert {"quantize.embedding.weight", "quant_conv.bias", "post_quant_conv.weight"} <= names


def test_ibq_codes_are_those_of_an_exhaustive_search_in_double_precision(ibq: Path) -> None:
    tokenizer = load_vision_tokenizer(ibq, batch_size=2)
    images = pictures(208)
    codes = tokenizer.encode_images(images)
    assert codes.shape == (6, 13, 13)
    assert codes.dtype == np.uint32
    assert (tokenizer.spatial_factor, tokenizer.temporal_factor, tokenizer.codebook_size) == (16, 1, IBQ_CODES)
    assert len(np.unique(codes)) >= 500
    assert codes.max() > 2**16

    found, codebook = latents(tokenizer, images)[::3], load_file(ibq / "model.safetensors")["quantize.embedding.weight"]
    products = [part @ codebook.double().T for part in torch.split(found, 128)]
    best = torch.cat([part.topk(2).values for part in products])
    chosen = torch.cat([part.argmax(1) for part in products]).numpy()
    ties = (best[:, 0] - best[:, 1] < 1e-5 * best[:, 0].abs()).numpy()
    assert ties.sum() <= 2
    np.testing.assert_array_equal(codes.reshape(-1)[::3][~ties], chosen[~ties])


def test_largest_products_of_equal_ones_is_the_lowest_code_across_the_parts_of_the_search() -> None:
    codebook = torch.zeros(20_000, 3)
    codebook[[4095, 4096, 19_999]] = torch.tensor([1.0, 2.0, 3.0])
    vectors = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]).repeat(1500, 1)
    assert largest_products(vectors, codebook).tolist() == [4095, 0] * 1500


@pytest.mark.parametrize("bound", ["paper", "centred"])
@pytest.mark.parametrize("levels", [(8, 5, 5), (3, 2, 4, 7)])
def test_fsq_every_code_goes_to_its_vector_and_back(levels: tuple[int, ...], bound: str) -> None:
    scalars = FiniteScalars(levels, bound)
    codes = torch.arange(scalars.codebook_size)
    vectors = scalars.vectors(codes)
    assert len(torch.unique(vectors, dim=0)) == scalars.codebook_size == np.prod(levels)
    digits = np.stack(np.unravel_index(codes.numpy(), levels, order="F"), axis=1)  # mixed radix, first digit lowest
    half = np.array(levels) // 2
    np.testing.assert_allclose(vectors.numpy(), (digits - half) / half)
    inverse = np.arctanh if bound == "centred" else np.tan
    width = (np.array(levels) - 1) * (1.001 if bound == "centred" else 0.999) / 2
    offset = np.where(np.array(levels) % 2, 0.0, 0.5)
    inside = np.clip((digits - half + offset) / width, -0.9999, 0.9999)  # what the bounding function takes there
    raw = np.arctanh(inside) - inverse(offset / width)
    np.testing.assert_array_equal(scalars.codes(torch.from_numpy(raw)).numpy(), codes.numpy())


def test_fsq_of_the_paper_by_hand() -> None:
    """Appendix A.1 by hand: L = 8, so h = 3.4965, o = 0.5; tanh(0.3 + tan(o / h)) · h - o = 0.9578 rounds to 1."""
    scalars = FiniteScalars([8, 5])
    bounded = scalars.bounded(torch.tensor([[0.3, -0.4]], dtype=torch.float64))
    np.testing.assert_allclose(bounded.numpy(), [[0.957832, -0.759138]], atol=1e-6)
    assert scalars.codes(torch.tensor([[0.3, -0.4]])).tolist() == [5 + 8 * 1]
    extremes = torch.tensor([[-1e4, -1e4], [1e4, 1e4]])
    assert scalars.codes(extremes).tolist() == [0, 39]


@pytest.mark.parametrize(("levels", "least"), [([8, 8, 8, 5, 5, 5], 0), ([8, 8, 8, 8, 8, 4], 2**16)])
def test_fsq_codes_are_the_nearest_of_all(tmp_path: Path, levels: list[int], least: int) -> None:
    tokenizer: Any = load_vision_tokenizer(write_fsq(tmp_path / "fsq", levels))
    images = pictures(128)
    codes = tokenizer.encode_images(images)
    assert (codes.shape, tokenizer.spatial_factor, tokenizer.codebook_size) == ((6, 16, 16), 8, np.prod(levels))
    assert len(np.unique(codes)) >= 500
    assert codes.max() > least

    scalars = tokenizer.network.scalars
    bounded = scalars.bounded(latents(tokenizer, images))[::6]
    grid = scalars.vectors(torch.arange(scalars.codebook_size)).double() * (scalars.levels // 2)
    distances = torch.cdist(bounded, grid)
    ties = (torch.diff(distances.topk(2, largest=False).values)[:, 0] < 1e-4).numpy()
    assert ties.sum() <= 2
    np.testing.assert_array_equal(codes.reshape(-1)[::6][~ties], distances.argmin(1).numpy()[~ties])


@pytest.mark.parametrize("kind", ["ibq", "fsq"])
def test_clip_is_its_frames_one_by_one_in_both_directions(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = load_vision_tokenizer(request.getfixturevalue(kind), batch_size=4)
    frames = pictures(64).reshape(2, 3, 64, 64, 3)
    codes = tokenizer.encode_video(frames)
    side = 64 // tokenizer.spatial_factor
    assert codes.shape == (2, 3, side, side)
    np.testing.assert_array_equal(codes.reshape(6, side, side), tokenizer.encode_images(frames.reshape(6, 64, 64, 3)))
    decoded = tokenizer.decode_video(codes)
    assert decoded.shape == frames.shape
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded[1], tokenizer.decode_images(codes[1]))
    with pytest.raises(ValueError, match="the codebook has"):
        tokenizer.decode_images(np.full((1, 2, 2), tokenizer.codebook_size, np.uint32))
    with pytest.raises(ValueError, match=f"multiples of {tokenizer.spatial_factor}"):
        tokenizer.encode_images(frames[0, :, :60])


def test_model_of_131072_codes_draws_a_picture_of_16_pixels_a_code(ibq: Path) -> None:
    from transformers import Emu3ForCausalLM, Emu3TextConfig

    from tokenmill.generate.pictures import decode_ids, parse_pictures
    from tokenmill.generate.sample import generate_vision

    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}
    vocabulary = byte_vocabulary(IBQ_CODES)
    markers = {"pad_token_id": vocabulary.pad, "bos_token_id": vocabulary.bos, "eos_token_id": vocabulary.eos}
    config = Emu3TextConfig(vocab_size=vocabulary.size, initializer_range=0.5, **markers, **shape, **heads)
    model = Emu3ForCausalLM(config).eval()
    (ids,) = generate_vision(model, vocabulary, ["a cat"], 2, 3, guidance=1.0, top_k=IBQ_CODES)
    (picture,) = parse_pictures(ids, vocabulary)
    assert picture.codes_thw.shape == (1, 2, 3)
    assert picture.codes_thw.max() > 2**16
    (image,) = decode_ids(ids, vocabulary, load_vision_tokenizer(ibq))
    assert image.shape == (32, 48, 3)


def test_bfloat16_convolutions_keep_most_codes_and_have_another_fingerprint(fsq: Path) -> None:
    full, half = load_vision_tokenizer(fsq), load_vision_tokenizer(fsq, dtype="bfloat16")
    images = pictures(64)
    equal = float((full.encode_images(images) == half.encode_images(images)).mean())
    assert 0.5 < equal < 1
    assert full.fingerprint != half.fingerprint


@pytest.mark.parametrize("kind", ["ibq", "fsq"])
def test_fingerprint_is_told_by_the_files_and_changes_with_what_shapes_codes(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(kind)
    known = vision_fingerprint(folder)
    assert known == load_vision_tokenizer(folder).fingerprint == vision_fingerprint(folder, device="cpu")
    shutil.copytree(folder, tmp_path / "copy")
    assert vision_fingerprint(tmp_path / "copy") == known
    assert len({known, *(vision_fingerprint(folder, **one) for one in ({"batch_size": 3}, {"dtype": "bfloat16"}))}) == 3
    weights = load_file(folder / "model.safetensors")
    weights["quant_conv.bias"][0] += 1
    save_file(weights, tmp_path / "copy" / "model.safetensors")
    assert vision_fingerprint(tmp_path / "copy") != known


def test_fingerprint_of_safetensors_needs_no_torch(ibq: Path) -> None:
    code = f"""
import sys
from tokenmill.tokenize.vision import vision_codebook_size, vision_fingerprint
print(vision_fingerprint({str(ibq)!r}), vision_codebook_size({str(ibq)!r}), "torch" in sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert told == [load_vision_tokenizer(ibq).fingerprint, str(IBQ_CODES), "False"]


def test_damaged_weights_are_refused(fsq: Path, tmp_path: Path) -> None:
    shutil.copytree(fsq, tmp_path / "fsq")
    weights = tmp_path / "fsq" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for opened in (vision_fingerprint, load_vision_tokenizer):
        with pytest.raises(RecipeError, match=r"model\.safetensors"):
            opened(tmp_path / "fsq")


def test_codebook_size_is_told_by_every_configuration(ibq: Path, fsq: Path) -> None:
    assert [vision_codebook_size(spec) for spec in (ibq, fsq, "scenes", "who/knows")] == [IBQ_CODES, 64_000, 2048, None]


def test_lightning_checkpoint_with_losses_and_averages_is_the_release_it_was_made_for(
    ibq: Path, tmp_path: Path
) -> None:
    """SEED-Voken's: settings under `model.init_args`, weights under `state_dict`, averages by names without dots."""
    released = load_file(ibq / "model.safetensors")
    averages = {f"model_ema.{name.replace('.', '')}": value for name, value in released.items()}
    others = {"loss.discriminator.main.0.weight": torch.ones(2), "model_ema.decay": torch.tensor(0.999)}
    trained = {name: value + 1 for name, value in released.items()}
    torch.save({"epoch": 3, "state_dict": trained | averages | others}, tmp_path / "IBQ.ckpt")
    config = yaml.safe_load((ibq / "config.yaml").read_text())
    told = {"model": {"class_path": "src.IBQ.models.ibqgan.IBQ", "init_args": config | {"lossconfig": {}}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(told | {"trainer": {"devices": 8}}))
    assert vision_fingerprint(tmp_path) == load_vision_tokenizer(tmp_path).fingerprint == vision_fingerprint(ibq)


def test_bare_checkpoint_beside_its_configuration_is_opened(ibq: Path, tmp_path: Path) -> None:
    """Emu3.5's release: `model.ckpt` holds the weights by name, `config.yaml` the arguments of the class."""
    shutil.copy(ibq / "config.yaml", tmp_path)
    torch.save(load_file(ibq / "model.safetensors"), tmp_path / "model.ckpt")
    assert load_vision_tokenizer(tmp_path).fingerprint == vision_fingerprint(ibq)


def test_weights_of_another_network_are_refused_by_name(ibq: Path, tmp_path: Path) -> None:
    shutil.copytree(ibq, tmp_path / "ibq")
    weights = load_file(ibq / "model.safetensors")
    del weights["encoder.mid.attn_1.q.weight"]
    save_file(weights | {"encoder.extra": torch.ones(1)}, tmp_path / "ibq" / "model.safetensors")
    with pytest.raises(RecipeError, match=r"missing encoder\.mid\.attn_1\.q\.weight; unknown encoder\.extra"):
        load_vision_tokenizer(tmp_path / "ibq")
    config = yaml.safe_load((ibq / "config.yaml").read_text())
    (tmp_path / "ibq" / "config.yaml").write_text(yaml.safe_dump(config | {"n_embed": 1000}))
    save_file(load_file(ibq / "model.safetensors"), tmp_path / "ibq" / "model.safetensors")
    with pytest.raises(RecipeError, match=r"quantize\.embedding\.weight has shape \(131072, 8\)"):
        load_vision_tokenizer(tmp_path / "ibq")


def test_checkpoint_with_more_than_tensors_is_refused(ibq: Path, tmp_path: Path) -> None:
    shutil.copy(ibq / "config.yaml", tmp_path)
    torch.save({"state_dict": {}, "of": Path("a")}, tmp_path / "model.ckpt")
    with pytest.raises(RecipeError, match="objects beside tensors"):
        load_vision_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"levels": [8, 1]}, "levels must be whole numbers above 1"),
        ({"levels": [256] * 4}, "more than ids can tell"),
        ({"bound": "none"}, "bound 'none' is not one of paper, centred"),
        ({"ddconfig": None}, "ddconfig is missing"),
        ({"ddconfig": small_vision.shape(4, double_z=True)}, "ddconfig.double_z is True"),
        ({"ddconfig": small_vision.shape(4, ch=40)}, "no multiples of 32"),
        ({"ddconfig": small_vision.shape(4, ch="wide")}, "ddconfig.ch must be a whole number above 0, found 'wide'"),
        ({"ddconfig": small_vision.shape(4, ch_mult=2)}, "ddconfig.ch_mult must be a list of whole numbers"),
        ({"ddconfig": {"ch": 32, "chs": 1}}, "missing or unknown: .*chs"),
    ],
)
def test_configuration_of_no_known_network_is_refused(fsq: Path, tmp_path: Path, changes: Any, told: str) -> None:
    config = json.loads((fsq / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match=told):
        load_vision_tokenizer(tmp_path)


def test_device_that_is_none_is_refused_before_weights_are_read(fsq: Path) -> None:
    for spec in (fsq, "scenes"):
        with pytest.raises(RecipeError, match="device 'nonsense' cannot be used"):
            load_vision_tokenizer(spec, device="nonsense")
        with pytest.raises(RecipeError, match="device 3 must be a name"):
            load_vision_tokenizer(spec, device=3)


def theirs(*, depth: int = 1) -> int:
    """Stand for a plug-in's factory."""
    return depth


def test_option_that_a_plug_in_does_not_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cast(dict[str, str], BUILT_IN), "theirs", f"{__name__}:theirs")
    with pytest.raises(RecipeError, match=r"'theirs' does not take \['width'\]"):
        load_vision_tokenizer("theirs", width=2)


def test_path_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no such folder"):
        load_vision_tokenizer(tmp_path / "nowhere")


def test_folder_without_weights_or_with_wrong_options_is_refused(fsq: Path, tmp_path: Path) -> None:
    shutil.copy(fsq / "config.json", tmp_path)
    with pytest.raises(RecipeError, match=r"needs model\.safetensors or model\.ckpt; found none"):
        load_vision_tokenizer(tmp_path)
    with pytest.raises(RecipeError, match="unknown option compiled; there are dtype, device, batch_size"):
        vision_fingerprint(fsq, compiled=True)
    with pytest.raises(RecipeError, match="compile is for Emu3's network alone"):
        load_vision_tokenizer(fsq, compile=True)
    with pytest.raises(RecipeError, match="dtype 'int3'"):
        load_vision_tokenizer(fsq, dtype="int3")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RecipeError, match=r"config\.json: Expecting"):
        vision_folder(tmp_path)
