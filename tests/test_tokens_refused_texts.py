"""A text that a tokenizer refuses costs the sample it belongs to, whatever that is, and none beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from tests import tiny
from tests.pages import drawn, encoded_json, talk, write_tar

from tokenmill.demo.clip_folder import encode_mp4
from tokenmill.demo.scenes import motion, render_motion
from tokenmill.errors import SampleError
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.recipe import check_recipe
from tokenmill.tokenize.text import BUILT_IN
from tokenmill.tokenize.text_bytes import ByteTokenizer

ENDLESS = " ".join(["endless"] * 10)


class Refusing(ByteTokenizer):
    """Refuses texts as Qwen's and Hugging Face's do when nothing tells where they may be cut."""

    def encode_array(self, text: str) -> NDArray[np.uint32]:
        if ENDLESS in text:
            raise SampleError("unsplittable", "no place where ids certainly split")
        return super().encode_array(text)


def _pictures(folder: Path) -> None:
    for number in range(3):
        (folder / f"{number}.png").write_bytes(tiny.picture(number))
    _captions(folder, "png")


def _clips(folder: Path) -> None:
    for number in range(3):
        encode_mp4(folder / f"{number}.mp4", render_motion(motion(number), 8, 48), 8)
    _captions(folder, "mp4")


def _captions(folder: Path, ending: str) -> None:
    told = ("one", ENDLESS, "three")
    rows = [{"file": f"{number}.{ending}", "caption": caption} for number, caption in enumerate(told)]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _conversations(folder: Path) -> None:
    talks = [talk(number) for number in range(3)]
    talks[1]["conversations"][3]["value"] = ENDLESS
    members = [
        member
        for number, one in enumerate(talks)
        for member in ((f"{number}.0.png", drawn(number)), (f"{number}.json", encoded_json(one)))
    ]
    write_tar(folder / "0.tar", members)


KINDS: dict[str, tuple[dict[str, Any], Callable[[Path], None]]] = {
    "image": ({"kind": "images"}, _pictures),
    "video": ({"kind": "videos"}, _clips),
    "document": ({"kind": "webdataset", "modality": "document"}, _conversations),
}
FILTERS: dict[str, Any] = {
    "video": {"scenes": {"content": None, "min_seconds": 0.5, "max_seconds": 60}},
    "document": {"scorers": {"document_shape": {}}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_is_refused_costs_its_sample_alone(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cast(dict[str, str], BUILT_IN), "refusing", f"{__name__}:Refusing")
    source, write = KINDS[kind]
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    described = {
        "root": str(tmp_path / "root"),
        "execution": {"executor": "inline", "decode_threads": 2},
        "sources": {"some": {**source, "url": str(tmp_path / "data")}},
        "filter": {kind: FILTERS.get(kind, {})},
        "tokenize": {
            "vocabulary": {"name": "refusing", "codebook_size": 2048},
            "vision": {"name": "scenes"},
            kind: {"min_area": 1024, "max_area": 4096},
        },
        "plan": {"context": 1500},
    }
    chain = Chain(recipe=check_recipe(described, "refusing"), options=ChainOptions(quiet=True))
    snapshot = chain.tokenize["some"]
    rows = [row for commit in snapshot.commits for row in snapshot.folder.read_rows(commit).rows(named=True)]
    assert [row["fail_reason"] for row in sorted(rows, key=lambda row: row["key"])] == [None, "unsplittable", None]
    assert snapshot.counts.failed == {"unsplittable": 1}
