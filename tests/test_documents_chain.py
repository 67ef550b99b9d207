"""Documents through the chain: read back as they were, scored, compared, taken down, selected whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from skimage import data as photographs
from tests.harness import Commands, faults_in, trusted
from tests.pages import drawn, encoded_json, page, page_members, talk, write_llava, write_obelics, write_tar

from tokenmill.errors import RecipeError, SampleError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.storage import open_store
from tokenmill.manifests.takedowns import Identifier
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.checks import check_chain
from tokenmill.pipelines.decoding import DecodeLimits, SampleReader
from tokenmill.pipelines.report import report_page
from tokenmill.pipelines.sources.raw_document import RawDocument, RawPicture, RawText
from tokenmill.pipelines.takedown import TakedownOptions, take_down
from tokenmill.recipe import Recipe, check_recipe

STAGES = ("ingest", "score", "takedown", "compare", "duplicates", "select")


def described(folder: Path, root: Path | str, source: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    scorers = {
        "document_shape": {},
        "text_statistics": {},
        "resolution": {"reduce": "min"},
        "colourfulness": {"when": "num_pictures > 1"},
        **changes.pop("scorers", {}),
    }
    section = {"scorers": scorers, "rules": {"size": "min_side_px >= 48"}, "duplicates": {"exact": True}, **changes}
    pages = source or {"kind": "webdataset", "modality": "document"}
    return {
        "root": str(root),
        "execution": {"executor": "inline", "decode_threads": 2, "unit_rows": 4},
        "sources": {"pages": {"url": str(folder), **pages}},
        "filter": {"document": section},
    }


def recipe(folder: Path, root: Path | str, source: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    return check_recipe(described(folder, root, source, **changes), "documents")


def chain_of(folder: Path, root: Path | str, source: dict[str, Any] | None = None, **changes: Any) -> Chain:
    return Chain(recipe=recipe(folder, root, source, **changes), options=ChainOptions(quiet=True))


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


def test_scores_are_of_all_texts_and_of_all_pictures_and_documents_are_selected_whole(data, tmp_path):
    chain = chain_of(data, tmp_path)
    run(chain)
    scores = {}
    for snapshot in chain.snapshots("score"):
        for commit in snapshot.commits:
            for row in snapshot.folder.read_rows(commit).iter_rows(named=True):
                scores.setdefault(row["key"], {}).update({n: v for n, v in row.items() if not n.startswith("fail_")})
    shape = {key: (row["num_pictures"], row["num_texts"], row["num_answers"]) for key, row in scores.items()}
    assert shape["a"] == (3, 4, 0) and shape["t"] == (1, 4, 2) and shape["words"] == (0, 1, 0)
    assert scores["words"]["num_chars"] == len("No picture.") and scores["a"]["num_words"] > 10
    assert scores["d"]["min_side_px"] == 32 and scores["words"]["min_side_px"] is None
    assert scores["a"]["colourfulness"] > 0 and scores["t"]["colourfulness"] is None
    verdicts = {row["key"]: row["drop_reason"] for row in _rows(chain, "select").iter_rows(named=True)}
    assert verdicts == {
        "a": None, "b": None, "copy": "exact_duplicate", "d": "size", "t": None, "words": "size:null",
        "x": None,  # no scorer that was asked looks at its one picture, which is cut off
    }  # fmt: skip
    failed = {row["key"]: row["fail_reason"] for row in _rows(chain, "ingest").iter_rows(named=True)}
    assert failed["silent"] == "no_content"


def test_colours_of_a_page_are_those_of_its_pictures_put_together(data, tmp_path):
    means = {}
    for reduce in ("min", "max", "mean"):
        chain = chain_of(data, tmp_path, scorers={"colourfulness": {"reduce": reduce}})
        chain.snapshots("score")
        (found,) = [s for s in chain.snapshots("score") if s.folder.config.settings["scorer"] == "colourfulness"]
        rows = pl.concat([found.folder.read_rows(commit) for commit in found.commits])
        means[reduce] = rows.filter(pl.col("key") == "a")["colourfulness"][0]
        assert dict(rows.filter(pl.col("fail_reason").is_not_null()).select("key", "fail_reason").rows()) == {
            "x": "truncated"
        }
    assert means["min"] < means["mean"] < means["max"]


def test_report_and_verify_know_documents(data, tmp_path):
    chain = chain_of(data, tmp_path)
    run(chain)
    assert faults_in(chain.store) == []
    told = report_page(chain.store, chain.recipe, Chain(recipe=chain.recipe, options=ChainOptions(work=frozenset())))
    assert "Kept documents" in told and "[picture 0]" in told and "num_pictures" in told


@pytest.mark.parametrize("asked", ["picture", "key", "url"])
def test_taking_down_a_picture_takes_down_the_documents_that_show_it(data, tmp_path, asked):
    chain = chain_of(data, tmp_path)
    run(chain)
    named = {
        "picture": Identifier(kind="sha256", value=sha256_hex(drawn(3))),
        "key": Identifier(kind="key", value="b"),
        "url": Identifier(kind="url", value="example.org/scenes/3.png"),
    }
    done = take_down(chain.recipe, [named[asked]], TakedownOptions(rewrite=False))
    assert done["samples"] == {"pages": 2} and done["not_found"] == []  # and the copy of it
    again = chain_of(data, tmp_path)
    run(again)
    verdicts = {row["key"]: row["drop_reason"] for row in _rows(again, "select").iter_rows(named=True)}
    assert verdicts["b"] == verdicts["copy"] == "takedown" and verdicts["a"] is None


def test_documents_of_tables_are_packed_and_the_same_again_as_an_archive(tmp_path):
    write_llava(tmp_path / "raw", 5)
    write_obelics(tmp_path / "raw" / "pages.parquet", 3)
    source = {"kind": "documents", "image_folder": "images", "rows_per_unit": 2}
    chain = chain_of(tmp_path / "raw", tmp_path / "root", source)
    digests = run(chain)
    assert faults_in(chain.store) == []
    index = _rows(chain, "ingest").sort("key")
    assert index.height == 8 and index["packed"].all() and index["fail_reason"].null_count() == 8
    packed = _read(chain, tmp_path / "raw")
    assert packed["pages.parquet#1"].pictures == (drawn(1), drawn(2))

    again = chain_of(tmp_path / "raw", tmp_path / "again", source)
    assert run(again) == digests and trusted(again.store) == trusted(chain.store)

    (tmp_path / "tars").mkdir()
    for number, commit in enumerate(chain.ingest["pages"].commits):
        tar = chain.store.read_bytes(chain.ingest["pages"].folder.at(commit.data.name))
        (tmp_path / "tars" / f"{number}.tar").write_bytes(tar)
    opened = chain_of(tmp_path / "tars", tmp_path / "opened")
    run(opened)
    assert set(_rows(opened, "ingest")["sha256"]) == set(index["sha256"])
    assert list(_read(opened, tmp_path / "tars").values()) == list(packed.values())


def test_taken_down_document_leaves_the_packed_archive_and_the_others_can_still_be_read(tmp_path):
    write_llava(tmp_path / "raw", 4)
    source = {"kind": "documents", "image_folder": "images", "key_field": "id"}
    chain = chain_of(tmp_path / "raw", tmp_path / "root", source)
    run(chain)
    doomed = Identifier(kind="sha256", value=sha256_hex(drawn(1)))
    take_down(chain.recipe, [doomed], TakedownOptions(rewrite=True))
    again = chain_of(tmp_path / "raw", tmp_path / "root", source)
    run(again)
    assert faults_in(again.store) == []
    found = _read(again, tmp_path / "raw")
    assert {key: one.pictures for key, one in found.items()} == {f"talk{n}": (drawn(n),) for n in (0, 2, 3)}
    folder = again.ingest["pages"].folder
    held = b"".join(again.store.read_bytes(folder.at(one.data.name)) for one in again.ingest["pages"].commits)
    assert drawn(2) in held and drawn(1) not in held and b"talk1" not in held


def test_ingest_that_is_killed_goes_on_and_leaves_the_same_files(tmp_path):
    write_llava(tmp_path / "raw", 6)
    source = {"kind": "documents", "image_folder": "images", "rows_per_unit": 2}
    for root in ("killed", "whole"):
        value = described(tmp_path / "raw", tmp_path / root, source)
        (tmp_path / f"{root}.yaml").write_text(yaml.safe_dump(value))
    with Commands(tokenizer=False) as commands:
        commands.run("ingest", tmp_path / "whole.yaml").check()
        for fault in ("commit:before-data:1", "commit:between-files:2", "commit:before-record:1"):
            assert commands.run("ingest", tmp_path / "killed.yaml", fault=fault).was_killed
        commands.run("ingest", tmp_path / "killed.yaml").check()
    stores = [open_store(str(tmp_path / root)) for root in ("killed", "whole")]
    assert trusted(stores[0]) == trusted(stores[1]) and faults_in(stores[0]) == []


@pytest.mark.s3
def test_documents_on_an_object_store_are_those_of_a_local_folder(data, tmp_path, s3_server):
    root = s3_server.new_root()
    store = open_store(root, s3_server.options)
    for path in data.iterdir():
        store.put(path.name, path.read_bytes())
    source = {"kind": "webdataset", "modality": "document", "url": root, "options": s3_server.options}
    chain, local = chain_of(data, tmp_path / "remote", source), chain_of(data, tmp_path / "local")
    run(chain), run(local)
    assert chain.ingest["pages"].digest == local.ingest["pages"].digest
    assert _read(chain, root) == _read(local, data)


def test_photographs_in_a_page_are_compared_with_an_evaluation_set(tmp_path):
    shown = [photographs.data_dir + f"/{name}" for name in ("astronaut.png", "coffee.png", "chelsea.png")]
    members = []
    for number, names in enumerate((shown[:2], shown[1:], shown[:1])):
        members += [(f"k{number}.{n}.png", Path(name).read_bytes()) for n, name in enumerate(names)]
        segments = [{"image": n} for n in range(len(names))] + [{"text": f"photographs {number}"}]
        members.append((f"k{number}.json", encoded_json({"segments": segments})))
    write_tar(tmp_path / "data" / "0.tar", members)
    write_tar(tmp_path / "exam" / "0.tar", members[:3])
    exam = {"name": "exam", "kind": "webdataset", "modality": "document", "url": str(tmp_path / "exam")}
    chain = chain_of(tmp_path / "data", tmp_path / "root", decontaminate=[exam])
    run(chain)
    verdicts = {row["key"]: row["drop_reason"] for row in _rows(chain, "select").iter_rows(named=True)}
    assert verdicts == {"k0": "contaminated", "k1": None, "k2": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorers": {"resolution": {"frames": 2}}}, "filter.document.scorers.resolution.frames: all pictures"),
        ({"scorers": {"text_statistics": {"reduce": "min"}}}, "filter.document.scorers.text_statistics.reduce"),
        ({"scorers": {"caption_quality": {}}}, "filter.document.scorers.caption_quality: reads captions"),
        ({"scorers": {"black": {}}}, "filter.document.scorers.black: takes video"),
        ({"duplicates": {"max_distance": 2}}, "filter.document.duplicates.max_distance: documents are compared"),
        ({"frames": {"fps": 1}}, "filter.document.frames: a sample of document has none"),
    ],
)
def test_settings_that_mean_nothing_for_documents_are_refused(data, tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        check_chain(chain_of(data, tmp_path, **changes))


def test_captions_of_documents_are_refused(data, tmp_path):
    value = described(data, tmp_path) | {"caption": {"document": {}}}
    with pytest.raises(RecipeError, match=r"caption\.document: a document is its own caption"):
        check_chain(Chain(recipe=check_recipe(value, "documents"), options=ChainOptions(quiet=True)))
