"""Verify beyond the stages: what carries no commit record is checked too; a damaged table is named when it is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tokenmill.errors import ManifestError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.plans import open_plan
from tokenmill.manifests.storage import Store, open_store
from tokenmill.manifests.takedowns import Identifier, read_takedowns, write_list
from tokenmill.manifests.verify import examine


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def faults(store: Store, *, deep: bool = True) -> list[str]:
    return [fault.path for fault in examine(store, "", deep=deep).faults]


def write_results(root: Path) -> dict[str, Path]:
    """Write an exported model, a drawn picture, an evaluation and a takedown list; returns a file of each."""
    export, drawn = root / "checkpoints/main/export", root / "generated/main/0123"
    export.mkdir(parents=True)
    drawn.mkdir(parents=True)
    (export / "model.safetensors").write_bytes(b"weights" * 100)
    digest = sha256_hex((export / "model.safetensors").read_bytes())
    (export / "tokenmill.json").write_text(json.dumps({"plan": "0" * 64, "files": {"model.safetensors": digest}}))
    (drawn / "000.png").write_bytes(b"a picture" * 10)
    picture = {"file": "000.png", "sha256": sha256_hex((drawn / "000.png").read_bytes())}
    (drawn / "generated.json").write_text(json.dumps({"schema": 1, "pictures": [picture]}))
    (root / "evaluation/main").mkdir(parents=True)
    (root / "evaluation/main/0123.json").write_text(json.dumps({"schema": 1, "losses": []}))
    name = write_list(open_store(str(root)), [Identifier(kind="key", value="a")], [], frozenset(), {"reason": "test"})
    return {
        "export": export / "model.safetensors",
        "generated": drawn / "000.png",
        "evaluation": root / "evaluation/main/0123.json",
        "takedowns": root / f"takedowns/{name}.parquet",
    }


@pytest.mark.parametrize("what", ["export", "generated", "takedowns"])
def test_verify_names_a_changed_result(what, tmp_path):
    files = write_results(tmp_path)
    store = open_store(str(tmp_path))
    assert faults(store) == []
    flip(files[what])
    told = str(files[what].relative_to(tmp_path))
    assert faults(store) == [told]
    files[what].unlink()
    assert faults(store, deep=False) == [told]


def test_verify_names_an_evaluation_that_cannot_be_read(tmp_path):
    files = write_results(tmp_path)
    files["evaluation"].write_text("{")
    assert faults(open_store(str(tmp_path))) == ["evaluation/main/0123.json"]


def test_takedown_list_that_was_changed_is_refused(tmp_path):
    files = write_results(tmp_path)
    flip(files["takedowns"])
    with pytest.raises(ManifestError, match=files["takedowns"].name):
        read_takedowns(open_store(str(tmp_path)))


def test_plan_with_a_changed_table_names_it_when_it_is_read(finished, tmp_path):
    root = Path(shutil.copytree(finished.root, tmp_path / "root"))
    store = open_store(str(root))
    (folder,) = root.glob("plans/*/*")
    plan = open_plan(store, str(folder.relative_to(root)))
    table = folder / plan.windows["documents"][0]
    flip(table)
    with pytest.raises(ManifestError, match=table.name):
        plan.documents(0)
