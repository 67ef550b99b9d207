"""Checkpoints on disk: complete or not there, checked when loaded, as many as are to be kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tokenmill.errors import ManifestError
from tokenmill.manifests.storage import open_store
from tokenmill.settings_train import ModelSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.checkpoints import Checkpoint, RunFolder, shares
from tokenmill.train.model import model_config
from tokenmill.train.saving import architecture_differences


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(open_store(str(tmp_path)), "main")


def written(folder: RunFolder, step: int) -> Checkpoint:
    """Write a checkpoint as two ranks do."""
    tensors = [{"a/weight": torch.full((3,), float(step))}, {"b/weight": torch.arange(4.0)}]
    files = tuple(folder.write_tensors(step, rank, share) for rank, share in enumerate(tensors))
    names = {name: file.name for file, share in zip(files, tensors, strict=True) for name in share}
    return Checkpoint(step=step, loader={"plan_id": "p"}, model={}, vocabulary={}, vision=None, settings={},
                      tensors=names, files=files)  # fmt: skip


def test_checkpoint_without_its_record_does_not_exist(folder: RunFolder) -> None:
    folder.publish(written(folder, 4))
    written(folder, 8)

    assert folder.steps() == [4]
    with pytest.raises(ManifestError, match="no complete checkpoint"):
        folder.read(8)


def test_checkpoint_read_back_gives_record_and_tensors(folder: RunFolder) -> None:
    checkpoint = written(folder, 4)
    folder.publish(checkpoint)

    found = folder.read(4)
    folder.verify(found)
    with folder.tensors(found) as tensors:
        assert torch.equal(tensors.read("a/weight"), torch.full((3,), 4.0))
        assert torch.equal(tensors.read("b/weight"), torch.arange(4.0))
        with pytest.raises(ManifestError, match="no tensor c/weight"):
            tensors.read("c/weight")
    assert found == checkpoint


@pytest.mark.parametrize("damage", ["flipped", "truncated", "removed"])
def test_verify_names_the_damaged_file(folder: RunFolder, damage: str) -> None:
    checkpoint = written(folder, 4)
    folder.publish(checkpoint)
    name = f"{folder.step_folder(4)}/{checkpoint.files[1].name}"
    data = folder.store.read_bytes(name)
    if damage == "removed":
        folder.store.delete(name)
    else:
        folder.store.put(name, data[:-1] if damage == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))

    with pytest.raises(ManifestError, match=checkpoint.files[1].name):
        folder.verify(checkpoint)


def test_prune_keeps_the_newest_and_removes_what_killed_runs_left(folder: RunFolder) -> None:
    for step in (2, 4, 6):
        folder.publish(written(folder, step))
    written(folder, 5)

    folder.prune(2)

    assert folder.steps() == [4, 6]
    assert folder.store.folders("checkpoints/main") == ["step-00000004", "step-00000006"]


def test_checkpoint_of_a_newer_schema_is_refused(folder: RunFolder) -> None:
    folder.publish(written(folder, 4))
    name = f"{folder.step_folder(4)}/checkpoint.json"
    folder.store.put(name, folder.store.read_bytes(name).replace(b'"schema": 2', b'"schema": 99'))

    with pytest.raises(ManifestError, match="schema 99"):
        folder.read(4)


def test_architecture_differences_name_both_values() -> None:
    small = model_config(ModelSettings(hidden=32, heads=4, kv_heads=2), byte_vocabulary(8), 64).to_dict()
    large = model_config(ModelSettings(hidden=64, heads=4, kv_heads=2), byte_vocabulary(8), 128).to_dict()

    assert architecture_differences(small, small) == []
    assert architecture_differences(small, large) == ["hidden_size 32 ≠ 64"]


def test_shares_hold_every_name_once_and_weigh_about_the_same() -> None:
    sizes = {f"p{n}": (n * 37) % 101 + 1 for n in range(50)}

    split = shares(sizes, 4)

    assert sorted(name for share in split for name in share) == sorted(sizes)
    loads = [sum(sizes[name] for name in share) for share in split]
    assert max(loads) < 1.1 * min(loads)
    assert split == shares(dict(reversed(sizes.items())), 4)
