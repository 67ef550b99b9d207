"""A vision tokenizer's fingerprint from its files is the one of the model built from them."""

from __future__ import annotations

import shutil

import pytest
import torch

from tokenmill.tokenize.vision import vision_fingerprint
from tokenmill.tokenize.vision_emu3 import load
from tokenmill.tokenize.vision_fingerprint import SHIPPED, fingerprint_of_folder
from tokenmill.tokenize.vision_options import VisionOptions


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_fingerprint_of_the_files_is_that_of_the_model(dtype):
    found = fingerprint_of_folder(SHIPPED, VisionOptions(dtype=dtype, batch_size=4))
    assert found == load(SHIPPED, dtype=dtype, batch_size=4).fingerprint


def test_fingerprint_tells_precision_batch_and_compilation_apart_and_not_the_device():
    ways = [{}, {"dtype": "bfloat16"}, {"dtype": "float16"}, {"batch_size": 8}, {"compile": True}]
    found = [vision_fingerprint("scenes", **way) for way in ways]
    assert len(set(found)) == len(ways)
    assert vision_fingerprint("scenes", device="cuda") == found[0]
    assert vision_fingerprint("scenes", compile=True, cuda_graphs=True, device="cuda") == found[-1]


@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_fingerprint_of_weights_in_another_precision_is_that_of_the_model(kept, tmp_path):
    load(SHIPPED).model.to(getattr(torch, kept)).save_pretrained(tmp_path)
    assert vision_fingerprint(tmp_path, batch_size=4) == load(tmp_path, batch_size=4).fingerprint
    assert fingerprint_of_folder(tmp_path, VisionOptions(batch_size=4)) is not None


def test_folder_with_anything_unusual_is_left_to_the_model(tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "one")
    weights = tmp_path / "one" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert fingerprint_of_folder(tmp_path / "one", VisionOptions()) is None
    assert fingerprint_of_folder(tmp_path / "none", VisionOptions()) is None
