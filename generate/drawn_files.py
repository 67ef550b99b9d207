"""What is drawn as files: PNG or mp4 that say how they came, and the ids, which nobody can get back from pixels.

A picture that is encoded again gives other codes, so the ids of every document are kept (4 bytes each before they are
compressed, 16 KB for 64x64 codes), in Parquet tables of one schema, whoever drew it. Names are made of letters that
every file system and shell takes; what was asked in full stands in the metadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.generate.pictures import save_png
from tokenmill.generate.write_video import mp4
from tokenmill.manifests.identity import canonical_json, sha256_hex
from tokenmill.manifests.stagedir import table_bytes

TOKEN_COLUMNS: dict[str, Any] = {
    "file": pl.String,  # of the picture or clip, in the same folder
    "prompt": pl.String,
    "seed": pl.Int64,
    "ids": pl.List(pl.Int32),  # of the whole document, from BOS to EOS
}
TOKENS_SCHEMA = 2
_ABOUT = "tokenmill"  # chunk of a PNG with everything as JSON; in an mp4 it is the tag `comment`
_LONGEST_WORDS = 40
_UNSAFE = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """A picture or clip that was drawn.

    Attributes:
        about: prompt, negative prompt, seed, grid, settings, fingerprints: JSON values, as its file tells them.
        ids: of the whole document, BOS to EOS.
        frames: THWC uint8; one frame of a picture.
        fps: of a clip; None of a picture.
    """

    about: Mapping[str, Any]
    ids: NDArray[np.int32]
    frames: NDArray[np.uint8]
    fps: float | None = None

    @property
    def suffix(self) -> str:
        return ".png" if self.fps is None else ".mp4"

    def data(self) -> bytes:
        """Give the file's bytes: the same drawing, the same bytes."""
        prompt = str(self.about.get("prompt", ""))
        if self.fps is None:
            stream = BytesIO()
            save_png(stream, self.frames[0], {**_short(self.about), _ABOUT: canonical_json(dict(self.about))})
            return stream.getvalue()
        tags = {"title": prompt.replace("\0", ""), "comment": json.dumps(dict(self.about), sort_keys=True)}
        return mp4(self.frames, self.fps, tags=tags)

    def save(self, path: str | Path) -> None:
        """Write the file; `path` should end in `suffix`."""
        Path(path).write_bytes(self.data())


def read_about(data: bytes | IO[bytes]) -> dict[str, Any]:
    """Return what a PNG or mp4 that was written here says of itself.

    Raises:
        SampleError: `no_metadata` for a file that is neither, or says nothing.
    """
    stream = BytesIO(data) if isinstance(data, bytes) else data
    head = stream.read(8)
    stream.seek(0)
    try:
        told = json.loads(_png_text(stream) if head.startswith(b"\x89PNG") else _mp4_comment(stream))
    except (OSError, ValueError, KeyError) as error:
        raise SampleError("no_metadata", f"says nothing of how it was drawn ({error})") from error
    if not isinstance(told, dict):
        raise SampleError("no_metadata", "says nothing of how it was drawn")
    return told


def file_stem(prompt: str, seed: int, identity: str) -> str:
    """Name a drawing by some words of its prompt, its seed, and digits of everything it hangs on."""
    words = _UNSAFE.sub("-", prompt.lower()).strip("-")[:_LONGEST_WORDS].strip("-")
    return f"{words or 'drawing'}-{seed}-{identity[:8]}"


def put_tokens(rows: Sequence[Mapping[str, Any]], documents: Sequence[NDArray[np.int32]]) -> tuple[str, bytes]:
    """Make the table of ids for files (`file`, `prompt` and `seed` of a row each); returns its name and its bytes."""
    told = [(row["file"], row["prompt"], row["seed"], ids.tolist()) for row, ids in zip(rows, documents, strict=True)]
    data = table_bytes(pl.DataFrame(told, schema=TOKEN_COLUMNS, orient="row"), TOKENS_SCHEMA)
    return f"tokens-{sha256_hex(data)[:8]}.parquet", data


def _short(about: Mapping[str, Any]) -> dict[str, str]:
    """Give what viewers of pictures show best, as texts of their own."""
    shown = {"prompt": about.get("prompt", ""), "negative_prompt": about.get("negative", ""), "seed": about.get("seed")}
    return {name: str(value).replace("\0", "") for name, value in shown.items() if value not in (None, "")}


def _png_text(stream: IO[bytes]) -> str:
    from PIL import Image

    with Image.open(stream, formats=("PNG",)) as image:
        image.load()
        return str(image.info[_ABOUT])


def _mp4_comment(stream: IO[bytes]) -> str:
    import av

    with av.open(stream) as container:
        return str(container.metadata["comment"])
