"""Keys, captions and metadata of samples of others, and their very bytes, from the source to the token archives."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from tests import tiny
from tests.picture_server import PictureServer, sends
from tests.tiny import picture

from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.recipe import check_recipe

_KEYS = ["000000000", "000000001", "a b", "d/e", "ünï", "UPPER", "#%25"]


def _own(number: int) -> dict[str, Any]:
    """Return what the `.json` member of a sample says, as img2dataset writes it."""
    nested = {"a": [1, None, {"b": "ü"}], "empty": {}}
    return {"url": f"http://x/{number}", "caption": f"json {number}", "exif": "{}", "width": 64, "nested": nested}


def _shard(folder: Path) -> dict[str, bytes]:
    """Write a shard as img2dataset does, with its table; returns the pictures."""
    folder.mkdir()
    pictures = {key: picture(number, 64, "JPEG") for number, key in enumerate(_KEYS)}
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for number, key in enumerate(_KEYS):
            members = {"jpg": pictures[key], "json": json.dumps(_own(number)).encode()}
            if number:  # the first has its caption in the json alone
                members["txt"] = f"cap {number}".encode()
            for extension, data in members.items():
                place = tarfile.TarInfo(f"{key}.{extension}")
                place.size = len(data)
                archive.addfile(place, io.BytesIO(data))
    columns = {
        "key": _KEYS,
        "status": ["success"] * len(_KEYS),
        "similarity": [0.1, float("nan"), None, 0.4, 0.5, 0.6, 0.7],
        "tags": pa.array([["x", "y"]] * len(_KEYS)),
        "caption": ["of the table"] * len(_KEYS),
    }
    pq.write_table(pa.table(columns), folder / "00000.parquet")
    return pictures


def _recipe(tmp_path: Path, sources: dict[str, Any]) -> Any:
    value = {**tiny.RECIPE, "root": str(tmp_path / "root"), "sources": sources}
    value["filter"] = {"image": {"scorers": {"resolution": {}}, "rules": {"size": "min_side_px >= 48"}}}
    return check_recipe(value, "r")


def _documents(snapshots: list[Snapshot]) -> dict[str, dict[str, Any]]:
    found = {}
    for snapshot in snapshots:
        for commit in snapshot.commits:
            archive = snapshot.folder.store.local_path(snapshot.folder.at(commit.data.name))
            for sample in webdataset.WebDataset(str(archive), shardshuffle=False).decode():
                assert sample["json"]["key"] not in found
                found[sample["json"]["key"]] = sample["json"]
    return found


def test_keys_captions_metadata_and_bytes_of_all_samples_survive_to_the_token_archives(tmp_path):
    pictures = _shard(tmp_path / "raw")
    before = (tmp_path / "raw" / "00000.tar").read_bytes()
    names, captions, tags_of = ["a.b", "c/d", "e"], ["one", "ünï", "three"], [[1], [], None]
    with PictureServer() as server:
        urls = [server.url(f"/{number}.png") for number in range(3)]
        server.answers |= {f"/{number}.png": sends(picture(number + 20)) for number in range(3)}
        (tmp_path / "tables").mkdir()
        table = pl.DataFrame({"url": urls, "caption": captions, "name": names, "tags": tags_of})
        table.write_parquet(tmp_path / "tables" / "part-0.parquet")
        web = {"kind": "urls", "url": str(tmp_path / "tables"), "key_field": "name", "allow_private": True}
        recipe = _recipe(tmp_path, {"laion": {"kind": "webdataset", "url": str(tmp_path / "raw")}, "web": web})
        chain = Chain(recipe=recipe, options=ChainOptions(quiet=True))
        documents = _documents(list(chain.snapshots("tokenize")))
    assert set(documents) == {*_KEYS, *names}

    assert (tmp_path / "raw" / "00000.tar").read_bytes() == before
    similarity = [0.1, None, None, 0.4, 0.5, 0.6, 0.7]
    for number, key in enumerate(_KEYS):
        said = {**_own(number), "key": key, "status": "success", "similarity": similarity[number], "tags": ["x", "y"]}
        caption = f"cap {number}" if number else "json 0"
        assert documents[key]["metadata"] == said
        assert (documents[key]["source_caption"], documents[key]["captions"]) == (caption, [caption])

    for number, (key, url, caption, tags) in enumerate(zip(names, urls, captions, tags_of, strict=True)):
        digest = hashlib.sha256(picture(number + 20)).hexdigest()
        facts = {"status": "success", "http_status": 200, "sha256": digest}
        assert documents[key]["metadata"] == {"url": url, "caption": caption, "name": key, "tags": tags, **facts}
        assert documents[key]["source_caption"] == caption

    root = open_store(str(tmp_path / "root"))
    packed = {key: picture(number + 20) for number, key in enumerate(names)}
    for snapshot in chain.snapshots("ingest"):
        for commit in snapshot.commits:
            for row in snapshot.folder.read_rows(commit).iter_rows(named=True):
                place = (row["offset"], row["length"])
                if row["packed"]:
                    data, wanted = root.read_range(snapshot.folder.at(commit.data.name), *place), packed[row["key"]]
                else:
                    data, wanted = before[place[0] : sum(place)], pictures[row["key"]]
                assert hashlib.sha256(data).hexdigest() == hashlib.sha256(wanted).hexdigest() == row["sha256"]
