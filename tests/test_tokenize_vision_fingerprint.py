"""A vision tokenizer's fingerprint from its files is the one of the model built from them."""

from __future__ import annotations

import shutil

import pytest

from tokenmill.tokenize.vision import vision_fingerprint
from tokenmill.tokenize.vision_emu3 import load
from tokenmill.tokenize.vision_fingerprint import SHIPPED, fingerprint_of_folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fingerprint_of_the_files_is_that_of_the_model(dtype):
    found = fingerprint_of_folder(SHIPPED, dtype=dtype, batch_size=4)
    assert found == load(SHIPPED, dtype=dtype, batch_size=4).fingerprint


@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_fingerprint_of_weights_in_another_precision_is_that_of_the_model(kept, tmp_path):
    load(SHIPPED, dtype=kept).model.save_pretrained(tmp_path)
    assert vision_fingerprint(tmp_path, batch_size=4) == load(tmp_path, batch_size=4).fingerprint
    assert fingerprint_of_folder(tmp_path, dtype="float32", batch_size=4) is not None


def test_folder_with_anything_unusual_is_left_to_the_model(tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "one")
    weights = tmp_path / "one" / "model.safetensors"
    assert fingerprint_of_folder(tmp_path / "one", dtype="int3", batch_size=4) is None
    weights.write_bytes(weights.read_bytes()[:-1])
    assert fingerprint_of_folder(tmp_path / "one", dtype="float32", batch_size=4) is None
    assert fingerprint_of_folder(tmp_path / "none", dtype="float32", batch_size=4) is None
