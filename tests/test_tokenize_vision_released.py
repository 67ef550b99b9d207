"""Emu3's vision tokenizer opens as released, inside of a whole Emu3, and as transformers saves it: one tokenizer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.released_vision import CODES, released_state, rename_inside, shards, small_port, write_released, write_whole

from tokenmill.errors import RecipeError
from tokenmill.settings_tokenizer import TokenizerTraining
from tokenmill.tokenize.preprocess import normalise
from tokenmill.tokenize.vision import load_vision_tokenizer, vision_codebook_size, vision_fingerprint
from tokenmill.tokenize.vision_fingerprint import fingerprint_of_folder
from tokenmill.tokenize.vision_options import VisionOptions
from tokenmill.train.vision_model import build_model

LAYOUTS = ("released", "whole", "whole_later", "port")


@pytest.fixture(scope="module")
def port() -> Any:
    return small_port()


@pytest.fixture(scope="module")
def folders(port: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    port.save_pretrained(root / "port")
    write_released(root / "released", port)
    for name in ("whole", "whole_later"):
        write_whole(root / name, port)
    rename_inside(root / "whole_later", "vqmodel.", "model.vqmodel.")
    return {name: root / name for name in LAYOUTS}


def pictures() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (2, 48, 64, 3), np.uint8)


def test_release_has_the_names_of_its_own_code(port: Any) -> None:
    names = released_state(port)
    told = {
        "encoder.down.0.downsample.conv.weight": (32, 32, 3, 3),
        "encoder.down.3.attn.0.q.weight": (64, 64, 1, 1),
        "encoder.down.3.attn.0.norm.weight": (64,),
        "encoder.mid.attn_1.proj_out.bias": (64,),
        "encoder.time_conv.1.conv.conv.weight": (4, 4, 4, 3, 3),
        "encoder.time_res_stack.0.norm1.running_var": (4,),
        "decoder.mid.attn_1.norm.norm_layer.weight": (64,),
        "decoder.mid.block_2.norm1.conv_b.weight": (64, 4, 1, 1),
        "decoder.up.2.block.0.nin_shortcut.weight": (32, 64, 1, 1),
        "decoder.up.3.attn.1.norm.conv_y.weight": (64, 4, 1, 1),
        "decoder.norm_out.norm_layer.bias": (32,),
        "quantize.embedding.weight": (CODES, 4),
        "post_quant_conv.conv.weight": (4, 4, 3, 1, 1),
    }
    assert {name: tuple(names[name].shape) for name in told} == told


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_gives_the_codes_pixels_and_fingerprint_of_the_port(
    port: Any, folders: dict[str, Path], layout: str
) -> None:
    tokenizer = load_vision_tokenizer(folders[layout])
    sizes = torch.tensor([pictures().shape[1:3]] * len(pictures()))
    with torch.no_grad():
        pixels_BCHW = torch.from_numpy(normalise(pictures())).permute(0, 3, 1, 2)
        expected = np.stack([found.numpy() for found in port.encode(pixels_BCHW, sizes).image_tokens])
    codes = tokenizer.encode_images(pictures())
    assert np.array_equal(codes, expected.reshape(codes.shape))
    assert len(np.unique(codes)) > 40
    reference = load_vision_tokenizer(folders["port"])
    pixels = tokenizer.decode_images(codes)
    assert np.array_equal(pixels, reference.decode_images(codes))
    assert len(np.unique(pixels)) > 40
    assert tokenizer.fingerprint == reference.fingerprint
    assert fingerprint_of_folder(folders[layout], VisionOptions()) == reference.fingerprint
    assert vision_codebook_size(folders[layout]) == CODES


def test_files_of_the_language_model_are_not_needed(folders: dict[str, Path], tmp_path: Path, port: Any) -> None:
    whole = write_whole(tmp_path / "whole", port)
    without = [file for file, names in shards(whole).items() if not any("vqmodel" in name for name in names)]
    assert len(without) > 1
    for file in without:
        (whole / file).unlink()
    assert load_vision_tokenizer(whole).fingerprint == vision_fingerprint(folders["port"])
    needed = next(file for file in shards(whole) if file not in without)
    (whole / needed).unlink()
    with pytest.raises(RecipeError, match=f"{needed} is missing"):
        load_vision_tokenizer(whole)


def test_weights_that_miss_exceed_or_differ_are_named(port: Any, tmp_path: Path) -> None:
    folder = write_released(tmp_path / "released", port)
    state = load_file(folder / "model.safetensors")
    del state["decoder.mid.attn_1.q.weight"]
    state["decoder.conv_in.bias"] = torch.zeros(3)
    save_file({**state, "loss.weight": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(RecipeError) as told:
        load_vision_tokenizer(folder)
    for part in (
        "1 missing (decoder.middle_block.attn_1.q_proj.weight)",
        "1 unexpected (loss.weight)",
        "1 of another shape (decoder.conv_in.bias)",
    ):
        assert part in str(told.value)


def test_release_under_the_configuration_of_the_port_is_refused_not_drawn_at_random(
    port: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = write_released(tmp_path / "released", port)
    (folder / "config.json").write_text((folders["port"] / "config.json").read_text())
    with pytest.raises(RecipeError, match=r"missing \(decoder\.middle_block.*unexpected \(decoder\.mid\."):
        load_vision_tokenizer(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "qwen2"}, "a model of type 'qwen2'"),
        ({"ch_mult": []}, "ch and ch_mult"),
        ({"z_channels": "four"}, "describes no network: .*latent_channels"),
        ({"temporal_downsample_factor": 2}, "missing|unexpected|2 frames a window"),
    ],
)
def test_configuration_that_describes_no_such_network_is_refused(
    port: Any, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    folder = write_released(tmp_path / "released", port)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(RecipeError, match=told):
        load_vision_tokenizer(folder)


def test_damaged_weights_are_refused(port: Any, tmp_path: Path) -> None:
    weights = write_released(tmp_path / "released", port) / "model.safetensors"
    for damaged in (weights.read_bytes()[:-4], b"", b"\xff" * 64):
        weights.write_bytes(damaged)
        assert fingerprint_of_folder(weights.parent, VisionOptions()) is None
        with pytest.raises(RecipeError, match=r"model\.safetensors"):
            load_vision_tokenizer(weights.parent)


def test_settings_that_the_release_leaves_out_are_those_of_its_class() -> None:
    from transformers.models.emu3 import Emu3VQVAEConfig

    from tokenmill.tokenize.vision_emu3_names import SHAPE, port_config

    assert port_config({}).items() <= {key: _plain(getattr(Emu3VQVAEConfig(), key)) for key in SHAPE}.items()


def test_training_starts_from_the_release(port: Any, folders: dict[str, Path]) -> None:
    model = build_model(TokenizerTraining.model_validate({"start": {"from": str(folders["released"])}}))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), port.parameters(), strict=True))
    assert all(value.requires_grad for value in model.parameters())


class _Hub(SimpleHTTPRequestHandler):
    """The hub's `resolve` addresses over a folder of models; notes what was asked for."""

    asked: list[str]

    def send_head(self) -> Any:
        model, _, name = self.path.lstrip("/").partition("/resolve/main/")
        if name:  # the client also asks the hub about itself
            self.asked.append(name)
        if not (Path(self.directory) / model / name).is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        self.path = f"/{model}/{name}"
        return super().send_head()

    def end_headers(self) -> None:
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{abs(hash(self.path)):032x}"')
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[Path, str, list[str]]]:
    asked: list[str] = []
    handler = partial(type("Handler", (_Hub,), {"asked": asked}), directory=str(tmp_path / "hub"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield tmp_path / "hub", f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_hub_sends_only_files_with_weights_of_the_tokenizer(
    port: Any, hub: tuple[Path, str, list[str]], tmp_path: Path
) -> None:
    root, address, asked = hub
    whole = write_whole(root / "team" / "whole", port)
    program = """
import sys
from tokenmill.tokenize.vision_emu3_files import emu3_files
files = emu3_files("team/whole")
print(len(files.held), all(path.is_file() for path in files.by_file), "torch" in sys.modules)
"""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", program]
    for offline in ("0", "1"):  # then from the cache alone
        environment["HF_HUB_OFFLINE"] = offline
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.stdout.split() == [str(len(port.state_dict())), "True", "False"], done.stderr
    wanted = {file for file, names in shards(whole).items() if any("vqmodel" in name for name in names)}
    assert set(asked) == {"config.json", "model.safetensors", "model.safetensors.index.json"} | wanted
    assert len(wanted) < len(shards(whole))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
