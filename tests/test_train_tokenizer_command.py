"""`tokenmill train-tokenizer`: from raw shards to a tokenizer that a recipe can name, on local disks and S3."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from tests import raw_samples, tiny
from tests.conftest import S3Server

from tokenmill.cli import main
from tokenmill.demo.photo_folder import write_heldout, write_photographs
from tokenmill.demo.photographs import HELDOUT_PHOTOGRAPHS, training_photographs
from tokenmill.errors import ManifestError, RecipeError
from tokenmill.manifests import sample_list
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.plan_draws import uniform
from tokenmill.pipelines.sample_list import write_sample_list
from tokenmill.recipe import check_recipe
from tokenmill.tokenize.vision import vision_fingerprint

TOKENIZER: dict[str, Any] = {
    "run": "small", "steps": 4, "warm_up_steps": 1, "checkpoint_every": 2, "held_out": 0.2, "device": "cpu",
    "threads_per_rank": 1, "tensorboard": False, "measure_every": 2,
    "shape": {"base_channels": 32, "hidden_size": 32, "codebook_size": 32},
    "batches": {"side": 16, "pictures": 8, "windows": 0.3, "larger": {}},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    tiny.write_data(folder)
    return folder


def recipe(data: Path, root: str, **changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = tiny.recipe(data, root, sources=("scenes", "photos", "clips"))
    for modality in ("image", "video"):
        value["filter"][modality].pop("duplicates", None)
    return {**value, "tokenizer": TOKENIZER, **changes}


def written(folder: Path, value: Mapping[str, Any]) -> str:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(dict(value)))
    return str(folder / "recipe.yaml")


def test_command_trains_a_tokenizer_that_opens_by_name_and_does_nothing_when_run_again(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], s3_server: S3Server
) -> None:
    root = s3_server.new_root()
    path = written(tmp_path, recipe(data, root, storage=s3_server.options))
    assert main(["train-tokenizer", path, "--json"]) == 0
    rows = {row["stage"]: row for row in json.loads(capsys.readouterr().out)["stages"]}
    trained = rows["train-tokenizer"]
    assert list(rows) == ["ingest", "split", "score", "select", "train-tokenizer"]
    assert trained["samples"] == rows["select"]["kept"]
    assert (trained["step"], trained["export"]) == (4, "checkpoints/tokenizers/small/export")
    assert trained["psnr_db"] > 0
    store = open_store(root, s3_server.options)
    export = tmp_path / "export"
    export.mkdir()
    for entry in store.files(trained["export"]):
        (export / entry.path.rsplit("/", 1)[-1]).write_bytes(store.read_bytes(entry.path))
    check_recipe({**recipe(data, root), "tokenize": {"vision": {"name": str(export)}}}, "again")
    assert len(vision_fingerprint(str(export))) == 64
    log = "checkpoints/tokenizers/small/logs/log-00.txt"
    store.delete(log)
    assert main(["train-tokenizer", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"][-1]["step"] == 4
    assert not store.exists(log)
    assert main(["verify", f"{root}/checkpoints", *_storage(s3_server)]) == 0
    capsys.readouterr()
    assert main(["inspect", f"{root}/checkpoints/tokenizers/small", "--json", *_storage(s3_server)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["step"], told["checkpoints"]) == ("tokenizer", 4, [2, 4])
    assert main(["train-tokenizer", path, "tokenizer.held_out=0.5"]) == 2
    assert "'small' was begun on other samples (as many samples, but others)" in capsys.readouterr().err


def _storage(server: S3Server) -> list[str]:
    return [word for key, value in server.options.items() for word in ("--storage", f"{key}={value}")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": None}, "tokenizer: is missing"),
        (
            {"tokenizer": {"sources": {"gone": 1}}},
            "tokenizer.sources.gone: no image or video source of that name",
        ),
        (
            {"tokenizer": {"losses": {"perceptual": {"weight": 1, "weights": "gone.pth"}}}},
            "tokenizer.losses.perceptual.weights: gone.pth: nothing is there",
        ),
        ({"tokenizer": {"start": {"from": "gone.ckpt"}}}, "tokenizer.start.from: gone.ckpt: nothing is there"),
    ],
)
def test_command_refuses_a_recipe_before_anything_starts(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    assert main(["train-tokenizer", written(tmp_path, recipe(data, str(tmp_path / "root"), **changes))]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "root").exists()


def test_list_names_what_was_kept_with_its_bytes_and_the_part_it_belongs_to(tmp_path: Path, data: Path) -> None:
    chain = Chain(recipe=check_recipe(recipe(data, str(tmp_path)), "list"), options=ChainOptions(quiet=True))
    assert chain.recipe.tokenizer is not None
    found = write_sample_list(chain, chain.recipe.tokenizer, "list", is_begun=False)
    rows, described = sample_list.read_list(chain.store, "list")
    assert found == described
    kept = {name: snapshot.counts.kept for name, snapshot in chain.select.items()}
    assert described.samples == {name: number for name, number in kept.items() if number}
    for row in rows.iter_rows(named=True):
        assert row["held_out"] == (uniform("held out", f"{row['source']}/{row['key']}") < 0.2)
    stores = {True: chain.store, False: open_store(str(data / "scenes"))}
    for row in rows.filter(pl.col("source").is_in(["scenes", "photos"])).iter_rows(named=True):
        read = stores[row["packed"]].read_range(row["path"], row["offset"], row["length"])
        assert sha256_hex(read) == row["sha256"]
    assert set(rows.filter(source="clips")["start_seconds"].is_null()) == {False}


def test_recipe_of_the_repository_trains_on_none_of_the_photographs_it_is_measured_on(tmp_path: Path) -> None:
    for name, write in (("photos", write_photographs), ("photos-heldout", write_heldout)):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    text = (Path(__file__).parents[1] / "train/recipes/vision_tokenizer.yaml").read_text()
    value = yaml.safe_load(text.replace("demo-out/data", str(tmp_path)))
    value |= {"root": str(tmp_path / "root"), "sources": {"photos": value["sources"]["photos"]}}
    value["filter"].pop("video")
    value["tokenizer"]["sources"] = {}
    chain = Chain(recipe=check_recipe(value, "recipe"), options=ChainOptions(quiet=True))
    assert chain.recipe.tokenizer is not None
    write_sample_list(chain, chain.recipe.tokenizer, "list", is_begun=False)
    keys = {Path(key).stem: key for key in sample_list.read_list(chain.store, "list")[0]["key"]}
    assert keys.keys() >= {photograph.name for photograph in training_photographs()}
    assert not keys.keys() & set(HELDOUT_PHOTOGRAPHS)
    copies = [keys["china"], keys["palace"]]  # of the same bytes: held out together where one of them is
    share = sum(uniform("held out", f"photos/{key}") for key in copies) / 2
    write_sample_list(chain, chain.recipe.tokenizer.model_copy(update={"held_out": share}), "other", is_begun=False)
    rows, _ = sample_list.read_list(chain.store, "other")
    assert rows.filter(pl.col("key").is_in(copies))["held_out"].to_list() == [True, True]


def test_list_of_moved_data_is_the_same_and_another_selection_of_a_begun_run_is_refused(tmp_path: Path) -> None:
    rows = raw_samples.write_shard(tmp_path / "scenes", raw_samples.scenes(4))
    table = raw_samples.listed(rows)
    moved = table.with_columns(path=pl.lit("elsewhere.tar"), offset=pl.lit(7))
    one, two, fewer = (sample_list.describe(t, {}) for t in (table, moved, table.head(3)))
    assert one.digest == two.digest
    assert one.differences(fewer) == ["scenes 4 → 3 samples"]
    store = open_store(str(tmp_path))
    sample_list.write(store, "list", table, one)
    sample_list.write(store, "other", table.head(3), fewer)
    store.put("list/samples.parquet", store.read_bytes("other/samples.parquet"))
    with pytest.raises(ManifestError, match="differs from the digest"):
        sample_list.read_list(store, "list")


def test_list_whose_places_moved_or_that_is_damaged_is_written_anew_for_a_begun_run(tmp_path: Path, data: Path) -> None:
    value = check_recipe(recipe(data, str(tmp_path)), "list")
    chain = Chain(recipe=value, options=ChainOptions(quiet=True))
    assert value.tokenizer is not None
    found = write_sample_list(chain, value.tokenizer, "list", is_begun=False)
    rows, _ = sample_list.read_list(chain.store, "list")
    sample_list.write(chain.store, "list", rows.with_columns(path=pl.lit("gone.tar")), found)
    assert write_sample_list(chain, value.tokenizer, "list", is_begun=True).digest == found.digest
    assert sample_list.read_list(chain.store, "list")[0].equals(rows)
    chain.store.put("list/samples.parquet", b"no table")
    write_sample_list(chain, value.tokenizer, "list", is_begun=True)
    assert sample_list.read_list(chain.store, "list")[0].equals(rows)


def test_run_begun_on_other_samples_is_refused_with_what_differs(tmp_path: Path, data: Path) -> None:
    value = check_recipe(recipe(data, str(tmp_path)), "list")
    chain = Chain(recipe=value, options=ChainOptions(quiet=True))
    assert value.tokenizer is not None
    first = write_sample_list(chain, value.tokenizer, "list", is_begun=True)
    changed = value.tokenizer.model_copy(update={"sources": {"scenes": 1.0}})
    with pytest.raises(RecipeError, match=r"'small' was begun on other samples \(clips \d+ → 0 samples; photos"):
        write_sample_list(chain, changed, "list", is_begun=True)
    assert sample_list.read_list_description(chain.store, "list") == first
    assert write_sample_list(chain, changed, "list", is_begun=False).digest != first.digest
