"""What a shard of the web holds beside pictures: a table of cases, each with the fate that it must have."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path

import pytest
import skimage.data
from PIL import Image
from tests import tiny

from tokenmill.pipelines.chain import Chain
from tokenmill.pipelines.fates import fates_of
from tokenmill.recipe import check_recipe

NAN_SCORER = """
import polars as pl
from tokenmill.filters.scorer import Picture, fingerprint
class Mood:
    '''NaN for pictures that are wider than high, null for very small ones.'''
    name, version, takes, batch_size = 'mood', 1, 'image', 1
    columns, fingerprint = {'mood': pl.Float32()}, fingerprint('mood', 1, {})
    def score(self, batch):
        return {'mood': [self.of(picture) for picture in batch]}
    def of(self, picture):
        return None if picture.height_px < 40 else float('nan') if picture.width_px > picture.height_px else 1.0
"""


def _encoded(kind: str = "JPEG", size: tuple[int, int] = (96, 96), start: int = 0) -> bytes:
    stream = io.BytesIO()
    pixels = skimage.data.astronaut()[start : start + size[1], 100 : 100 + size[0]]
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def _claims(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that says it is enormous."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        for body in (header, b"IDAT" + zlib.compress(b"\0" * 64))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="90" height="90"><rect/></svg>'
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
FALSE_JPEG = b"\xff\xd8\xff\xe0" + HTML

# key, extension, bytes, caption (None: no .txt member), the beginning of its fate
CASES = [
    ("sound", "jpg", _encoded(), "an astronaut", "kept"),
    ("zero-bytes", "jpg", b"", "nothing", "failed at score: empty"),
    ("truncated", "jpg", _encoded(start=8)[:-700], "half of it", "failed at score: truncated"),
    ("truncated-png", "png", _encoded("PNG", start=16)[:-900], "half of it", "failed at score: truncated"),
    ("bomb", "png", _claims(60_000, 60_000), "enormous", "failed at score: too_many_pixels"),
    ("png-called-jpg", "jpg", _encoded("PNG", start=24), "lossless", "kept"),
    ("webp-called-png", "png", _encoded("WEBP", start=32), "small", "kept"),
    ("svg-called-jpg", "jpg", SVG, "vectors", "failed at score: not_an_image"),
    ("html-called-jpg", "jpg", HTML, "a page", "failed at score: not_an_image"),
    ("html-with-a-jpeg-mark", "jpg", FALSE_JPEG, "a page", "failed at score: "),
    # webdataset's rule: the extension begins at the first dot, so this is sample `v1` with a member `2.jpg`
    ("v1", "2.jpg", _encoded(start=40), "a key with dots", "failed at ingest: no_image"),
    ("no-caption", "jpg", _encoded(start=48), None, "failed at caption: no_caption"),
    ("control", "jpg", _encoded(start=56), "bell \a, escape \x1b[31m, null \x00, \u202e turned\r\n", "kept"),
    ("wide", "jpg", _encoded(size=(128, 96), start=64), "NaN for its mood", "dropped: mood:null"),
    ("small", "jpg", _encoded(size=(20, 20), start=72), "null for its mood", "dropped: mood:null"),
    ("no-picture", "pdf", b"%PDF-1.7", "a document", "failed at ingest: no_image"),
    ("last", "jpg", _encoded(start=80), "behind them all", "kept"),
]


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _write_shards(folder: Path) -> None:
    folder.mkdir(parents=True)
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for key, extension, data, caption, _ in CASES:
            _add(archive, f"{key}.{extension}", data)
            if caption is not None:
                _add(archive, f"{key}.txt", caption.encode())
        _add(archive, "sound.jpg", _encoded(start=88))  # a key that was there before
        _add(archive, "sound.txt", b"the second of this name")
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for number in range(3):
            _add(archive, f"cut-{number}.jpg", _encoded(start=100 + 8 * number))
            _add(archive, f"cut-{number}.txt", b"in a shard that is cut")
    whole.seek(0)
    with tarfile.open(fileobj=whole) as archive:
        middle = archive.getmember("cut-1.jpg").offset_data + 100
    (folder / "00001.tar").write_bytes(whole.getvalue()[:middle])


@pytest.fixture(scope="module")
def fates(tmp_path_factory) -> dict[tuple[str, str], str]:
    folder = tmp_path_factory.mktemp("bad")
    _write_shards(folder / "data")
    (folder / "mood.py").write_text(NAN_SCORER)
    information = folder / "mood-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: mood\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[tokenmill.scorers]\nmood = mood:Mood\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        recipe = {
            "root": str(folder / "root"),
            "execution": {"executor": "inline"},
            "sources": {"web": {"kind": "webdataset", "url": str(folder / "data")}},
            "filter": {
                "image": {
                    "scorers": {
                        "resolution": {}, "colourfulness": {}, "sharpness": {}, "entropy": {}, "perceptual_hash": {},
                        "mood": {},
                    },
                    "rules": {"mood": "mood >= 0.5"},
                }
            },
            "tokenize": {key: tiny.RECIPE["tokenize"][key] for key in ("vocabulary", "vision", "image")},
        }  # fmt: skip
        chain = Chain(recipe=check_recipe(recipe, "test"))
        _ = chain.tokenize
        return fates_of(chain)


@pytest.mark.parametrize(("key", "fate"), [(case[0], case[4]) for case in CASES])
def test_sample_of_each_kind_has_its_fate(fates, key, fate):
    assert fates["web", key].startswith(fate)


def test_second_sample_of_a_key_and_the_end_of_a_cut_shard_are_rows_of_their_own(fates):
    told = sorted(fate for (_, key), fate in fates.items() if key not in {case[0] for case in CASES})
    assert sum(fate.startswith("kept") for fate in told) == 1  # the whole sample before the cut
    assert sum("truncated_archive" in fate for fate in told) == 1
