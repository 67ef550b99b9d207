"""Checkpoints on disk: complete or not there, checked when loaded, as many as are to be kept."""

from __future__ import annotations

import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tokenmill.errors import ManifestError, StorageError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.storage import open_store
from tokenmill.settings_train import ModelSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.checkpoints import Checkpoint, RunFolder, run_folder, shares
from tokenmill.train.model import model_config
from tokenmill.train.saving import architecture_differences
from tokenmill.train.tensor_writer import bytes_of, write_tensors

KINDS = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool]
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


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


def test_prune_keeps_milestones_and_what_is_on_its_way(folder: RunFolder) -> None:
    for step in (2, 3, 4, 6, 7, 8):
        folder.publish(written(folder, step))
    written(folder, 9)

    folder.prune(1, milestone_every=3)

    assert folder.steps() == [3, 6, 8]
    assert folder.store.folders("checkpoints/main")[-1] == "step-00000009"
    folder.discard_unfinished()
    assert folder.store.folders("checkpoints/main")[-1] == "step-00000008"
    assert folder.store.read_bytes(folder.at("latest")) == b"step-00000008\n"


def test_checkpoint_set_aside_does_not_exist_and_keeps_its_files(folder: RunFolder) -> None:
    for step in (2, 4):
        folder.publish(written(folder, step))

    folder.set_aside(4)

    assert folder.steps() == [2]
    names = [entry.path.rpartition("/")[2] for entry in folder.store.files(folder.step_folder(4))]
    assert sorted(name[:10] for name in names) == ["damaged.js", "tensors-00", "tensors-01"]


def test_disk_too_full_for_what_is_to_be_uploaded_is_told_with_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(open_store(f"memory://{uuid.uuid4().hex}"), "main")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))

    with pytest.raises(StorageError, match=r"the disk is full: .* needs [\d,]+ bytes, 10 are free"):
        written(folder, 2)


def test_tensors_elsewhere_are_named_by_url_and_go_with_their_record() -> None:
    root, away = (open_store(f"memory://{uuid.uuid4().hex}/{name}") for name in ("root", "away"))
    folder = run_folder(root, "main", away.url)
    for step in (2, 4):
        folder.publish(written(folder, step))
    plain = RunFolder(root, "main")

    found = plain.read(4)
    plain.verify(found)
    assert {entry.name.rpartition("/")[0] for entry in found.files} == {f"{away.url}/main/step-00000004"}
    with plain.tensors(found) as tensors:
        assert torch.equal(tensors.read("b/weight"), torch.arange(4.0))
    assert [entry.path for entry in root.files("checkpoints/main/step-00000004")] == [
        "checkpoints/main/step-00000004/checkpoint.json"
    ]
    folder.prune(1)
    assert {entry.path.split("/")[1] for entry in away.files()} == {"step-00000004"}
    away.delete(away.files()[0].path)
    with pytest.raises(ManifestError, match="missing, or its sha256 differs"):
        plain.verify(found)


@given(
    described=st.dictionaries(st.text(min_size=1, max_size=9), st.tuples(st.sampled_from(KINDS), shapes), max_size=6)
)
@settings(max_examples=30, deadline=None)
def test_tensors_written_are_those_safetensors_reads(
    described: dict[str, tuple[torch.dtype, tuple[int, ...]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensors = {name: torch.randint(0, 2, shape).to(kind) for name, (kind, shape) in described.items()}
    path = tmp_path_factory.mktemp("tensors") / "file"

    digest, size = write_tensors(path, tensors)

    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)
    assert (digest, size) == (sha256_hex(path.read_bytes()), path.stat().st_size)
    assert size == bytes_of(tensors)


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
