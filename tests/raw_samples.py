"""Raw shards of scenes and moving scenes, with the list that training a tokenizer reads: as if ingest had found it."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from tokenmill.demo.clip_folder import encode_mp4
from tokenmill.demo.scenes import motion, render, render_motion, scene
from tokenmill.manifests import sample_list
from tokenmill.manifests.archive import ArchiveWriter
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.storage import open_store
from tokenmill.settings_tokenizer import TokenizerTraining
from tokenmill.train.vision_job import StorePlace, TokenizerJob
from tokenmill.train.vision_samples import Place, Samples

FPS, FRAMES = 8, 16


def png(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(folder: Path, encoded: Sequence[bytes], *, source: str = "scenes") -> list[dict[str, Any]]:
    """Pack encoded pictures into a tar; returns the list's rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    with ArchiveWriter(folder / "00000.tar") as writer:
        for number, data in enumerate(encoded):
            key = f"{number:05d}"
            placed = writer.add(key, {"png": data})["png"]
            rows.append(
                {"source": source, "key": key, "sha256": sha256_hex(data), "path": "00000.tar",
                 "offset": placed.offset, "length": placed.length, "extension": "png"}
            )  # fmt: skip
    return rows


def write_clips(folder: Path, count: int, *, side: int = 48, source: str = "clips") -> list[dict[str, Any]]:
    """Encode moving scenes; returns the list's rows, a clip each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        name = f"{number}.mp4"
        encode_mp4(folder / name, render_motion(motion(number), FRAMES, side), FPS)
        rows.append(clip_row(name, source=source, side=side))
    return rows


def clip_row(path: str, *, source: str = "clips", side: int = 48) -> dict[str, Any]:
    return {
        "source": source, "key": path, "sha256": sha256_hex(path.encode()), "path": path, "start_frame": 0,
        "end_frame": FRAMES, "start_seconds": 0.0, "end_seconds": FRAMES / FPS, "fps": float(FPS), "width_px": side,
        "height_px": side,
    }  # fmt: skip


def listed(rows: Sequence[dict[str, Any]], *, held_out: Sequence[int] = ()) -> pl.DataFrame:
    """Return rows as a list's table; the numbers in `held_out` are not trained on."""
    whole = [{"held_out": number in held_out, "packed": False, **row} for number, row in enumerate(rows)]
    return pl.DataFrame(whole, schema=dict(sample_list.COLUMNS))


def samples(folder: Path, table: pl.DataFrame, **options: Any) -> Samples:
    """Open a list whose sources are the folders of their names."""
    places = {name: Place(url=str(folder / name)) for name in table["source"].unique().to_list()}
    given = {"cache_bytes": 1 << 26, "max_pixels": 1 << 24, **options}
    return Samples(table, Place(url=str(folder / "root")), places, **given)


def job(folder: Path, table: pl.DataFrame, settings: TokenizerTraining) -> TokenizerJob:
    """Write the list where the run looks for it, and describe the run."""
    root = str(folder / "root")
    place = f"checkpoints/{settings.folder}"
    sample_list.write(open_store(root), place, table, sample_list.describe(table, {}))
    places = {name: StorePlace(url=str(folder / name)) for name in sorted(set(table["source"]))}
    return TokenizerJob(root=StorePlace(url=root), places=places, settings=settings)


def scenes(count: int, side: int = 48, first: int = 0) -> list[bytes]:
    return [png(render(scene(first + number), side)) for number in range(count)]
