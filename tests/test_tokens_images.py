"""Pictures as codes: alone or among others the same, in order and early, with bounded bytes waiting."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests import counted_vision, tiny

from tokenmill.errors import RunError, SampleError
from tokenmill.manifests.archive import ArchiveWriter
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.tokens_clip import TokenArea
from tokenmill.pipelines.tokens_images import Buckets, ImageEncoder, Sized, Waiting
from tokenmill.pipelines.tokens_model import Pixels, SharedVision
from tokenmill.recipe import check_recipe
from tokenmill.tokenize.preprocess import resize
from tokenmill.tokenize.vision import load_vision_tokenizer

AREA = TokenArea(min_area=1024, max_area=4096, max_aspect=5.0, multiple=8)
SHAPES = ((64, 48), (32, 32), (40, 88), (48, 64))


def pictures(number: int) -> list[Pixels]:
    rng = np.random.default_rng(number)
    small = [rng.integers(0, 256, (4, 4, 3), np.uint8) for _ in range(number)]
    return [resize(one, SHAPES[index % len(SHAPES)]) for index, one in enumerate(small)]


def encoder(vision: Any, cpus: int = 1) -> ImageEncoder:
    return ImageEncoder(SharedVision(vision, cpus), AREA, max_pixels=10**6)


def counted(tmp_path: Path, batch_size: int = 4) -> counted_vision.CountedVision:
    return counted_vision.CountedVision(log=str(tmp_path / "log"), batch_size=batch_size)


@pytest.mark.parametrize("cpus", [1, 3])
def test_codes_of_a_picture_are_those_it_has_alone_whoever_is_beside_it(cpus: int) -> None:
    vision = load_vision_tokenizer("scenes")
    some = pictures(48)
    alone = [vision.encode_images(one[None])[0] for one in some]
    order = np.random.default_rng(1).permutation(len(some))
    found = dict(encoder(vision, cpus).encoded((int(place), some[place]) for place in order))
    assert len(np.unique(np.concatenate([codes.ravel() for codes in alone]))) > 100
    assert all(np.array_equal(found[place], codes) for place, codes in enumerate(alone))


def test_batches_elsewhere_than_on_a_cpu_have_one_size_and_their_padding_leaves_no_trace(tmp_path: Path) -> None:
    vision, some = counted(tmp_path), pictures(11)  # the tokenizer refuses batches of another size than 4
    found = dict(encoder(vision).encoded(enumerate(some)))
    assert [codes.shape for codes in found.values()] == [(h // 8, w // 8) for h, w, _ in (one.shape for one in some)]
    again = dict(encoder(vision).encoded(reversed(list(enumerate(some)))))
    assert all(np.array_equal(found[place], again[place]) for place in found)


def test_codes_come_in_order_and_before_the_last_picture_is_asked_for(tmp_path: Path) -> None:
    asked: list[int] = []

    def source() -> Iterator[tuple[int, Sized]]:
        for number, one in enumerate(pictures(60)):
            asked.append(number)
            yield number, SampleError("corrupt", "no picture") if number == 5 else one

    found = encoder(counted(tmp_path, batch_size=1)).encoded(source())
    first = next(found)
    assert first[0] == 0 and len(asked) < 60
    rest = list(found)
    assert [place for place, _ in rest] == list(range(1, 60))
    assert [place for place, codes in rest if isinstance(codes, SampleError)] == [5]


@given(shapes=st.lists(st.sampled_from(SHAPES), max_size=60), batch=st.integers(1, 5), most=st.integers(20_000, 60_000))
def test_buckets_hold_no_more_than_their_budget_and_lose_nothing(
    shapes: list[tuple[int, int]], batch: int, most: int
) -> None:
    buckets: Buckets[int] = Buckets(batch, most)
    batches = []
    for number, shape in enumerate(shapes):
        batches += buckets.add(Waiting(number, np.zeros((*shape, 3), np.uint8)))
        assert buckets.bytes == sum(int(np.prod(key)) * len(held) for key, held in buckets.waiting.items()) <= most
    batches += buckets.rest()
    assert sorted(one.destination for each in batches for one in each) == list(range(len(shapes)))
    assert all(len({shapes[one.destination] for one in each}) == 1 and len(each) <= batch for each in batches)
    assert buckets.bytes == 0


def test_fault_of_the_vision_tokenizer_ends_the_run_and_is_no_bad_picture() -> None:
    class Broken:
        spatial_factor, temporal_factor, batch_size = 8, 4, 2

        def encode_images(self, images: Pixels) -> Pixels:
            raise IndexError("index 2048 is out of bounds")

    with pytest.raises(RunError, match="vision tokenizer failed: IndexError"):
        list(encoder(cast(Any, Broken())).encoded(enumerate(pictures(9))))


def test_thread_settings_of_torch_are_as_before_once_the_encoder_is_closed() -> None:
    import torch

    before = torch.get_num_threads()
    shared = SharedVision(load_vision_tokenizer("scenes"), cpus=2)
    shared.images(pictures(1)).result()
    shared.close()
    assert torch.get_num_threads() == before


def _file(pixels: Pixels) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _tokens(folder: Path, root: str, files: dict[str, bytes], **changes: Any) -> pl.DataFrame:
    (folder / "scenes").mkdir(parents=True)
    with ArchiveWriter(folder / "scenes" / "00000.tar") as writer:
        for key, data in files.items():
            writer.add(key, {"png": data, "txt": b"a picture"})
    every = {
        "execution.unit_rows": 100,
        "execution.failure_budget": 2,
        "filter.image": {"scorers": {}, "rules": {}},
        "tokenize.vision": {"name": counted_vision.NAME, "log": str(folder / "log")},
        "tokenize.vocabulary": {"name": "bytes", "codebook_size": 256},
    }
    recipe = check_recipe(tiny.recipe(folder, root, every | changes, sources=["scenes"]), "r")
    (snapshot,) = Chain(recipe=recipe, options=ChainOptions(quiet=True)).tokenize.values()
    return pl.concat(snapshot.folder.read_rows(commit) for commit in snapshot.commits)


def test_broken_and_unwanted_pictures_in_a_batch_have_their_reasons_and_leave_their_neighbours_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted_vision.install(monkeypatch)
    good = {f"g{number}": _file(one) for number, one in enumerate(pictures(12))}
    thin = {f"thin{number}": np.zeros((6, 30, 3), np.uint8) for number in range(3)}
    long = {f"long{number}": np.zeros((16, 96, 3), np.uint8) for number in range(3)}  # three in a row, past the budget
    unwanted = {key: _file(one) for key, one in (thin | long).items()}
    broken = {"cut": good["g3"][:-40], "none": b"this is no picture"}
    keys = [*list(good)[:3], *unwanted, *list(good)[3:6], *broken, *list(good)[6:]]
    files = good | unwanted | broken
    mixed = _tokens(tmp_path / "mixed", str(tmp_path / "a"), {key: files[key] for key in keys})
    apart = _tokens(tmp_path / "apart", str(tmp_path / "b"), good)
    reasons = dict(mixed.filter(pl.col("fail_reason").is_not_null()).select("key", "fail_reason").iter_rows())
    assert reasons == {
        **{f"thin{number}": "too_small" for number in range(3)},
        **{f"long{number}": "aspect_too_large" for number in range(3)},
        "cut": "truncated", "none": "not_an_image",
    }  # fmt: skip
    columns = ["key", "sha256", "segments", "codes_crc32"]
    kept = mixed.filter(pl.col("fail_reason").is_null()).select(columns)
    assert kept.sort("key").equals(apart.select(columns).sort("key"))
