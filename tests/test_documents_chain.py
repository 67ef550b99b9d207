"""Documents through the chain: read back as they were, scored, compared, taken down, selected whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.pages import drawn, encoded_json, page, page_members, talk, write_tar

from tokenmill.errors import RecipeError, SampleError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.takedowns import Identifier
from tokenmill.manifests.verify import verify
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.checks import check_chain
from tokenmill.pipelines.decoding import DecodeLimits, SampleReader
from tokenmill.pipelines.fates import fates_of
from tokenmill.pipelines.sources.raw_document import RawDocument, RawPicture, RawText
from tokenmill.pipelines.takedown import TakedownOptions, take_down
from tokenmill.recipe import Recipe, check_recipe

STAGES = ("ingest", "score", "takedown", "compare", "duplicates", "select")


def recipe(folder: Path, root: Path, **changes: Any) -> Recipe:
    scorers = {
        "document_shape": {},
        "text_statistics": {},
        "resolution": {"reduce": "min"},
        "colourfulness": {"when": "num_pictures > 0"},
        **changes.pop("scorers", {}),
    }
    section = {"scorers": scorers, "rules": {"size": "min_side_px >= 48"}, "duplicates": {"exact": True}, **changes}
    return check_recipe(
        {
            "root": str(root),
            "execution": {"executor": "inline", "decode_threads": 2, "unit_rows": 4},
            "sources": {"pages": {"kind": "webdataset", "modality": "document", "url": str(folder)}},
            "filter": {"document": section},
        },
        "documents",
    )


def chain_of(folder: Path, root: Path, **changes: Any) -> Chain:
    return Chain(recipe=recipe(folder, root, **changes), options=ChainOptions(quiet=True))


def run(chain: Chain) -> dict[str, str]:
    check_chain(chain)
    return {one.folder.path: one.digest for stage in STAGES for one in chain.snapshots(stage)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars: three pages (one a copy of another, one with a small picture), two talks, one of them broken."""
    folder = tmp_path_factory.mktemp("documents")
    small = [("d.0.png", drawn(9, side=32)), ("d.1.png", drawn(10)), ("d.json", encoded_json(page(9)))]
    write_tar(folder / "00000.tar", [*page_members("a", 0, 3), *page_members("b", 3), *page_members("copy", 3), *small])
    talks = [("t.jpg", drawn(7, "JPEG")), ("t.json", encoded_json(talk(7)))]
    words = ("words.json", encoded_json({"images": [None], "texts": ["No picture."]}))
    broken = [("x.jpg", drawn(8, "JPEG")[:150]), ("x.json", encoded_json(talk(8)))]
    write_tar(folder / "00001.tar", [*talks, *broken, words, ("silent.json", encoded_json({"conversations": []}))])
    return folder


def _rows(chain: Chain, stage: str) -> pl.DataFrame:
    return pl.concat(
        [s.folder.read_rows(c) for s in chain.snapshots(stage) for c in s.commits], how="diagonal_relaxed"
    )  # fmt: skip


def _read(chain: Chain, url: Path, where: pl.Expr | None = None) -> dict[str, RawDocument | SampleError]:
    found = {}
    reader = SampleReader("pages", {**chain.recipe.sources["pages"].model_dump(), "url": str(url)}, DecodeLimits())
    for piece in chain.pieces["pages"]:
        rows = piece.read() if where is None else piece.read().filter(where)
        found |= dict(zip(rows["key"], reader.documents(piece, rows), strict=True))
    reader.close()
    return found


def test_reader_gives_the_parts_and_the_encoded_pictures_of_every_document(data, tmp_path):
    chain = chain_of(data, tmp_path)
    run(chain)
    found = _read(chain, data)
    assert list(found) == ["a", "b", "copy", "d", "t", "x", "words"]
    assert all(isinstance(one, RawDocument) for one in found.values())
    assert found["a"].pictures == (drawn(0), drawn(1), drawn(2))
    assert [one.number for one in found["a"].parts if isinstance(one, RawPicture)] == [0, 1, 2]
    assert found["t"].pictures == (drawn(7, "JPEG"),)
    assert [(one.role, one.learn) for one in found["t"].parts if isinstance(one, RawText)] == [
        ("user", False), ("assistant", True)
    ] * 2  # fmt: skip
    assert found["words"].pictures == ()


def test_reader_refuses_a_document_whose_json_or_picture_changed_since(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    chain = chain_of(tmp_path / "data", tmp_path / "root")
    run(chain)
    tar = tmp_path / "data" / "00000.tar"
    tar.write_bytes(tar.read_bytes().replace(drawn(1), drawn(1)[:-9] + b"IEND\xae\x42\x60\x83!").replace(
        b"This was the page.", b"This is another on", 3)[: tar.stat().st_size])  # fmt: skip
    found = _read(chain, tmp_path / "data", pl.col("key").is_in(["a", "b", "d"]))
    reasons = {key: one.reason for key, one in found.items() if isinstance(one, SampleError)}
    assert reasons == {"a": "changed_since_ingest", "b": "changed_since_ingest"}
