"""Small documents of the demo's scenes: pages and conversations, and the tars and tables that hold them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tokenmill.demo.scenes import captions, render, scene
from tokenmill.errors import SampleError
from tokenmill.pipelines.sources.source import IndexRow, open_source

Member = tuple[str, bytes]


@lru_cache
def drawn(number: int, kind: str = "PNG", side: int = 64) -> bytes:
    """Return scene `number` as an encoded picture."""
    buffer = io.BytesIO()
    Image.fromarray(render(scene(number), side)).save(buffer, kind)
    return buffer.getvalue()


def said(number: int, variant: int = 0) -> str:
    """Return what is to be seen on scene `number`."""
    told = captions(scene(number))
    return told[variant % len(told)]


def encoded_json(value: Any) -> bytes:
    """Return a JSON as bytes."""
    return json.dumps(value).encode()


def page(first: int, pictures: int = 2) -> dict[str, Any]:
    """Return a page of OBELICS: so many pictures, each before the text about it, and a last text."""
    numbers = range(first, first + pictures)
    images = [one for n in numbers for one in (f"https://example.org/scenes/{n}.png", None)]
    texts = [one for n in numbers for one in (None, said(n))]
    return {"images": [*images, None], "texts": [*texts, "This was the page."], "general_metadata": {"page": first}}


def talk(number: int, image: Any = None) -> dict[str, Any]:
    """Return a conversation of LLaVA's kind about scene `number`."""
    turns = [
        {"from": "human", "value": "<image>\nWhat is this?"},
        {"from": "gpt", "value": said(number)},
        {"from": "human", "value": "Say it in other words."},
        {"from": "gpt", "value": said(number, 1)},
    ]
    return {"id": f"talk{number}", "image": image or f"scenes/{number}.png", "conversations": turns}


def write_tar(path: Path, members: Sequence[Member]) -> bytes:
    """Write a tar as users' tools do; returns its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path.read_bytes()


def page_members(key: str, first: int, pictures: int = 2, kind: str = "PNG") -> list[Member]:
    """Return the members of a page in a tar: its pictures, numbered from 0, and its JSON."""
    ending = "jpg" if kind == "JPEG" else kind.lower()
    shown = [(f"{key}.{n}.{ending}", drawn(first + n, kind)) for n in range(pictures)]
    return [*shown, (f"{key}.json", encoded_json(page(first, pictures)))]


def write_llava(folder: Path, count: int = 6, name: str = "chats/mix.json") -> None:
    """Write conversations as LLaVA's data set has them: one array, and a folder of pictures."""
    for number in range(count):
        place = folder / "images" / f"scenes/{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(drawn(number))
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(encoded_json([talk(number) for number in range(count)]))


def write_obelics(path: Path, count: int = 4) -> None:
    """Write pages as Hugging Face's Parquet has them: pictures as bytes in their rows, some rows to a group."""
    rows = []
    for first in range(count):
        told = page(first)
        numbers = iter(range(first, first + 2))
        images = [None if one is None else {"bytes": drawn(next(numbers)), "path": None} for one in told["images"]]
        rows.append({**told, "images": images, "general_metadata": json.dumps(told["general_metadata"])})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


def index_of(url: Path | str, kind: str = "webdataset", **settings: Any) -> list[IndexRow]:
    """Index all files of a source of documents."""
    if kind == "webdataset":
        settings = {"modality": "document", **settings}
    source = open_source("s", {"kind": kind, "url": str(url), **settings})
    return [row for file in source.files() for row in source.index(file)]


def reason_of(row: IndexRow) -> str | None:
    """Return why a row failed."""
    assert row.error is None or isinstance(row.error, SampleError)
    return None if row.error is None else row.error.reason
