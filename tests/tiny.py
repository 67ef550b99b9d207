"""A whole recipe on a few small samples of every kind, some of them broken: what tests of the chain run on.

Twelve scenes in two img2dataset-style shards (one picture cut off, one a copy), four pictures in a folder (one is
none), three clips (one is none), ten texts (one in a broken encoding), all drawn or written by the project itself.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from tokenmill.demo.clip_folder import encode_mp4
from tokenmill.demo.scenes import captions, motion, render, render_motion, scene
from tokenmill.manifests.archive import ArchiveWriter

RECIPE: dict[str, Any] = {
    "execution": {"executor": "inline", "decode_threads": 1, "unit_rows": 4, "workers": 1},
    "sources": {
        "scenes": {"kind": "webdataset", "licence": "Apache-2.0"},
        "photos": {"kind": "images"},
        "clips": {"kind": "videos"},
        "text": {"kind": "jsonl", "range_bytes": 1500},
    },
    "filter": {
        "image": {
            "scorers": {"resolution": {}, "colourfulness": {}, "perceptual_hash": {"when": "min_side_px >= 48"}},
            "rules": {"resolution": "min_side_px >= 48"},
            "duplicates": {"exact": True, "max_distance": 0},
            "carry": ["colourfulness"],
        },
        "video": {
            "scorers": {"resolution": {}},
            "rules": {"resolution": "min_side_px >= 32"},
            "scenes": {"min_seconds": 0.25, "max_seconds": 1},
        },
        "text": {"scorers": {"text_statistics": {}}, "rules": {"length": "num_chars >= 20"}},
    },
    "tokenize": {
        "vocabulary": {"name": "bytes", "codebook_size": 2048},
        "vision": {"name": "scenes"},
        "image": {"min_area": 1024, "max_area": 4096},
        "video": {"min_area": 1024, "max_area": 1024, "fps": 8, "long": "runs", "max_ids": 256},
    },
    "plan": {"context": 256, "window_documents": 12, "window_packs": 1, "held_out": 0.1, "split_long_clips": True},
}
DATA_STAGES = ("ingest", "split", "score", "duplicates", "select", "caption", "tokenize", "plan")


def write_data(folder: Path) -> None:
    """Write the raw data of all four sources."""
    for name in RECIPE["sources"]:
        (folder / name).mkdir(parents=True)
    _scenes(folder / "scenes")
    _photos(folder / "photos")
    _clips(folder / "clips")
    _texts(folder / "text")


def write_pictures(folder: Path) -> None:
    """Write the raw data of the sources of pictures alone, which takes a tenth of the time."""
    for name, write in (("scenes", _scenes), ("photos", _photos)):
        (folder / name).mkdir(parents=True)
        write(folder / name)


def recipe(
    data: Path, root: str, changes: Mapping[str, Any] | None = None, *, sources: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return the recipe over `data` as a mapping; `changes` are `key.path → value`, `sources` those to keep."""
    value = copy.deepcopy(RECIPE) | {"root": root}
    for name in value["sources"]:
        value["sources"][name]["url"] = str(data / name)
    if sources is not None:
        value["sources"] = {name: value["sources"][name] for name in sources}
    for path, new in (changes or {}).items():
        *parents, last = path.split(".")
        place = value
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = new
    return value


def write_recipe(
    path: Path,
    data: Path,
    root: str,
    changes: Mapping[str, Any] | None = None,
    *,
    sources: Sequence[str] | None = None,
) -> Path:
    """Write the recipe as YAML."""
    path.write_text(yaml.safe_dump(recipe(data, root, changes, sources=sources), sort_keys=False))
    return path


def picture(seed: int, size: int = 64, kind: str = "PNG") -> bytes:
    """Return a scene as an encoded picture."""
    stream = BytesIO()
    Image.fromarray(render(scene(seed), size)).save(stream, kind)
    return stream.getvalue()


def _scenes(folder: Path) -> None:
    for shard in range(2):
        with ArchiveWriter(folder / f"{shard:05d}.tar") as writer:
            for number in range(6):
                seed = shard * 6 + number
                data = picture(0 if seed == 7 else seed)
                data = picture(seed, kind="JPEG")[:500] if seed == 4 else data
                row = json.dumps({"url": f"https://example.org/{seed}", "captions": list(captions(scene(seed)))})
                extension = "jpg" if seed == 4 else "png"
                members = {extension: data, "txt": captions(scene(seed))[0].encode(), "json": row.encode()}
                writer.add(f"{shard:05d}{number:03d}", members)


def _photos(folder: Path) -> None:
    rows = []
    for number in range(3):
        (folder / f"photo.{number}.png").write_bytes(picture(100 + number, 72))
        rows.append({"file": f"photo.{number}.png", "caption": captions(scene(100 + number))[0]})
    (folder / "broken.jpg").write_bytes(b"this is no picture")
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _clips(folder: Path) -> None:
    rows = []
    for number in range(2):
        encode_mp4(folder / f"motion-{number}.mp4", render_motion(motion(number), 12, 48), 12)
        rows.append({"file": f"motion-{number}.mp4", "caption": captions(motion(number))[0]})
    (folder / "none.mp4").write_bytes(b"this is no clip")
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _texts(folder: Path) -> None:
    lines = []
    for number in range(9):
        words = " ".join(f"word{number}{other}" for other in range(20 + number * 5))
        lines.append(json.dumps({"id": f"doc-{number}", "text": f"Text {number}: {words}."}).encode())
    lines.insert(4, b'{"id": "bad", "text": "\xff\xfe"}')
    (folder / "texts.jsonl").write_bytes(b"\n".join(lines) + b"\n")
