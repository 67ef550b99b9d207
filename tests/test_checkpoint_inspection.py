"""`tokenmill inspect` and `verify` of a training run and of its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenmill.checkpoint_inspection import describe_training, render_training
from tokenmill.cli import main
from tokenmill.errors import ManifestError
from tokenmill.manifests.storage import open_store
from tokenmill.train.checkpoints import Checkpoint, RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with two checkpoints, an unfinished one, and thirty steps in its log, of which the last is torn."""
    run = RunFolder(open_store(str(tmp_path)), "main")
    for step in (10, 20):
        _write(run, step)
    run.write_tensors(30, 0, {"a/weight": torch.ones(3)})
    rows = [{"step": n, "loss": 5.0 / n, "loss_text": None, "tokens": 100, "step_s": 36.0, "data_wait_s": 0.36,
             "unreadable": int(n == 7)} for n in range(1, 31)]  # fmt: skip
    path = tmp_path / "checkpoints" / "main"
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 31, "lo')
    return path


def _write(run: RunFolder, step: int) -> None:
    shares = [{"a/weight": torch.ones(3), "a/exp_avg": torch.ones(3)}, {"b/weight": torch.ones(2, 4)}]
    files = tuple(run.write_tensors(step, rank, share) for rank, share in enumerate(shares))
    names = {name: file.name for file, share in zip(files, shares, strict=True) for name in share}
    model = {"model_type": "emu3_text_model", "hidden_size": 4, "vocab_size": 99, "torch_dtype": "float32"}
    loader = {"plan_id": "ab" * 32, "phase": "pretrain", "epoch": 0, "next_pack": 16 * step, "global_packs": 16}
    run.publish(Checkpoint(step=step, loader=loader, model=model, vocabulary={}, vision=None,
                           settings={"precision": "bf16", "zero_stage": 2}, tensors=names, files=files))  # fmt: skip


def _inspected(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["inspect", str(path), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_inspect_checkpoint_tells_step_plan_sizes_and_losses_up_to_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _inspected(folder / "step-00000010", capsys)

    assert (found["kind"], found["step"], found["plan"]) == ("checkpoint", 10, "ab" * 32)
    assert found["loader"] == {"phase": "pretrain", "epoch": 0, "next_pack": 160, "global_packs": 16}
    assert (found["parameters"], found["tensors"]) == (3 + 8, 3)
    assert found["bytes"] == sum(found["files"].values()) and len(found["files"]) == 2
    assert found["digests"] == "compared" and found["faults"] == []
    assert found["settings"] == {"precision": "bf16", "zero_stage": 2}
    assert found["steps_logged"] == 10 and found["ids_read"] == 1000 and found["unreadable"] == 1
    assert found["losses"][-1] == {"step": 10, "loss": 0.5}
    assert found["hours"] == pytest.approx(0.1) and found["data_wait"] == pytest.approx(0.01)


def test_inspect_run_tells_checkpoints_the_newest_and_how_it_went(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "start.json").write_text('{"start_from": "before@7", "plan": "cd"}')
    (folder / "evaluation.jsonl").write_text('{"step": 10, "loss": 2.5}\n{"step": 20, "loss": 2.25}\n')

    found = _inspected(folder, capsys)

    assert found["evaluation"] == {"step": 20, "loss": 2.25}
    assert (found["kind"], found["checkpoints"], found["unfinished"]) == ("training run", [10, 20], ["step-00000030"])
    assert found["newest"]["step"] == 20 and found["exported_step"] is None
    assert found["steps_logged"] == 30 and len(found["losses"]) == 10
    assert [row["step"] for row in found["losses"]] == list(range(3, 31, 3))

    assert main(["inspect", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "checkpoints  10, 20; unfinished: step-00000030" in told
    assert "start_from   before@7" in told
    assert "exported     nothing yet" in told and "so far       30 steps, 3,000 ids, 0.30 hours" in told


@pytest.mark.parametrize("damage", ["flipped", "truncated", "removed"])
def test_inspect_and_verify_name_the_damaged_file(
    folder: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sorted((folder / "step-00000020").glob("*.safetensors"))[1]
    data = path.read_bytes()
    path.unlink()
    if damage != "removed":
        path.write_bytes(data[:-1] if damage == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))

    (fault,) = _inspected(folder / "step-00000020", capsys)["faults"]
    assert path.name in fault
    assert main(["verify", str(folder), "--deep"]) == 1
    assert path.name in capsys.readouterr().out
    assert main(["verify", str(folder / "step-00000010"), "--deep"]) == 0


def test_verify_without_reading_all_finds_a_head_that_is_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = min((folder / "step-00000020").glob("*.safetensors"))
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])

    assert main(["verify", str(folder)]) == 1
    assert "not a safetensors file" in capsys.readouterr().out


def test_inspect_run_without_a_checkpoint_tells_its_rows(folder: Path) -> None:
    for path in folder.glob("step-*/checkpoint.json"):
        path.unlink()

    found = describe_training(str(folder), {})

    assert found is not None and found["checkpoints"] == [] and "newest" not in found
    assert "checkpoints  none; unfinished: step-00000010" in render_training(found)


def test_inspect_checkpoint_with_a_damaged_record_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = folder / "step-00000020" / "checkpoint.json"
    record.write_text("[]")

    with pytest.raises(ManifestError, match=r"checkpoint\.json: not a record"):
        describe_training(str(folder), {})
    record.write_text('{"schema": 1}')
    assert main(["inspect", str(folder / "step-00000020")]) == 1
    assert "not a checkpoint record" in capsys.readouterr().err


def test_inspect_of_a_store_of_objects_reads_the_run_beside_its_checkpoint() -> None:
    store = open_store("memory://inspected")
    run = RunFolder(store, "main")
    _write(run, 4)
    store.put(run.at("metrics.jsonl"), b'{"step": 4, "loss": 1.5}\n{"step": 5, "loss": 1.0}\n')

    found = describe_training("memory://inspected/checkpoints/main/step-00000004", {})

    assert found is not None and found["step"] == 4 and found["losses"] == [{"step": 4, "loss": 1.5}]


def test_folder_of_something_else_is_left_to_the_other_views(tmp_path: Path) -> None:
    assert describe_training(str(tmp_path), {}) is None
    assert describe_training(str(tmp_path / "step-5"), {}) is None
