"""Tokenizers of other grids, larger codebooks and no windows, from pictures and a clip to packs, and back to pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from numpy.typing import NDArray
from PIL import Image
from tests import small_vision, tiny
from tests.small_vision import IBQ_CODES, write_fsq, write_ibq

from tokenmill.demo.clip_folder import encode_mp4
from tokenmill.errors import RecipeError, RunError
from tokenmill.generate.grammar import VisionGrammar
from tokenmill.generate.pictures import decode_ids, parse_pictures
from tokenmill.inspection import inspect_path
from tokenmill.manifests.verify import verify
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.checks import check_chain
from tokenmill.pipelines.report import report_page
from tokenmill.recipe import check_recipe
from tokenmill.tokenize import vision
from tokenmill.tokenize.preprocess import resize
from tokenmill.tokenize.vision import VisionTokenizer, load_vision_tokenizer
from tokenmill.tokenize.vocabulary import build_vocabulary
from tokenmill.train.loader import PlanLoader

CONTEXT = 800
NAMES = ("astronaut", "chelsea", "coffee", "china")
FRAMES, FPS = 9, 8
KINDS: dict[str, tuple[int, int, int, type]] = {  # codes, pixels of a code, sides of pictures, type on disk
    "ibq": (IBQ_CODES, 16, 224, np.uint32),
    "fsq-131072": (IBQ_CODES, 4, 64, np.uint32),
    "fsq-64000": (64_000, 8, 128, np.uint16),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photographs, one of them wider, and a clip that moves over another."""
    folder = tmp_path_factory.mktemp("raw")
    for source in ("photos", "clips"):
        (folder / source).mkdir()
    for name, image in zip(NAMES, small_vision.pictures(200, NAMES), strict=True):
        Image.fromarray(image[: 150 if name == "china" else 200]).save(folder / "photos" / f"{name}.png")
    flower = small_vision.pictures(128, ["flower"])[0]
    encode_mp4(folder / "clips" / "flower.mp4", np.stack([flower[n : n + 96, : 2 * 48] for n in range(FRAMES)]), FPS)
    lines = [json.dumps({"file": f"{name}.png", "caption": f"a picture of {name}"}) for name in NAMES]
    (folder / "photos" / "captions.jsonl").write_text("\n".join(lines))
    (folder / "clips" / "captions.jsonl").write_text(json.dumps({"file": "flower.mp4", "caption": "a flower moves"}))
    return folder


@dataclass(frozen=True)
class Finished:
    """A run of all data stages with one tokenizer."""

    chain: Chain
    vision: VisionTokenizer
    factor: int
    side: int
    dtype: type

    def samples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield every sample as stock webdataset reads it, with the archive it is in."""
        for snapshot in self.chain.snapshots("tokenize"):
            for commit in snapshot.commits:
                path = str(snapshot.folder.store.local_path(snapshot.folder.at(commit.data.name)))
                yield from ((path, sample) for sample in webdataset.WebDataset(path, shardshuffle=False).decode())


@pytest.fixture(scope="module", params=list(KINDS))
def finished(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("run")
    codes, factor, side, dtype = KINDS[request.param]
    if request.param == "ibq":
        write_ibq(folder / "tokenizer")
    elif request.param == "fsq-131072":
        write_fsq(folder / "tokenizer", [8, 8, 8, 8, 8, 4], depth=3)
    else:
        write_fsq(folder / "tokenizer", [8, 8, 8, 5, 5, 5])
    opened = load_vision_tokenizer(folder / "tokenizer", batch_size=2)
    assert (opened.codebook_size, opened.spatial_factor, opened.temporal_factor) == (codes, factor, 1)
    chain = chain_of(data, folder, codes=codes, side=side)
    check_chain(chain)
    assert chain.plan.num_packs
    return Finished(chain, opened, factor, side, dtype)


def chain_of(data: Path, folder: Path, *, codes: int, side: int, vision: Any = None) -> Chain:
    value = tiny.recipe(data, str(folder / "root"), sources=["photos", "clips"])
    value["filter"] = {
        "image": {"scorers": {"resolution": {}}, "rules": {"size": "min_side_px >= 48"}},
        "video": {"scorers": {"resolution": {}}, "rules": {"size": "min_side_px >= 48"}},
    }
    value["tokenize"] = {
        "vocabulary": {"name": "bytes", "codebook_size": codes},
        "vision": vision or {"name": str(folder / "tokenizer"), "batch_size": 2},
        "image": {"min_area": side**2, "max_area": side**2},
        "video": {
            "min_area": (side // 2) ** 2,
            "max_area": (side // 2) ** 2,
            "fps": FPS,
            "long": "runs",
            "max_ids": 400,
        },
    }
    value["plan"] = {"context": CONTEXT, "window_documents": 4, "window_packs": 1, "split_long_clips": True}
    return Chain(recipe=check_recipe(value, "other"), options=ChainOptions(quiet=True))


def grid_of(sample: dict[str, Any]) -> tuple[int, int, int]:
    (grid,) = [tuple(segment["vision"]) for segment in sample["json"]["segments"] if "vision" in segment]
    return grid


def packed_pictures(chain: Chain, vision: VisionTokenizer) -> dict[bytes, list[NDArray[np.uint8]]]:
    """Read every pack of the plan; returns the decoded frames of each document's vision by its codes."""
    vocabulary = build_vocabulary(chain.recipe.tokenize.vocabulary)
    loader = PlanLoader(chain.plan, vocabulary, global_packs=2)
    found = {}
    for step in (loader.step(number) for number in range(loader.steps_per_epoch)):
        assert not step.faults
        for batch in step.micro_batches:
            ends = batch.cu_seqlens.tolist()
            for ids in (batch.input_ids[start:end].astype(np.int32) for start, end in pairwise(ends)):
                for picture in parse_pictures(ids, vocabulary):
                    t, h, w = picture.codes_thw.shape
                    first = int(np.flatnonzero(ids == vocabulary.sot)[0])
                    rules = VisionGrammar(vocabulary, h, w, t).schedule()[:-1]  # behind EOV a caption may stand
                    assert all(one in allowed for one, allowed in zip(ids[first + 1 :].tolist(), rules, strict=False))
                    found[picture.codes_thw.tobytes()] = decode_ids(ids, vocabulary, vision)
    return found


def test_archives_hold_the_tokenizers_own_codes_in_the_type_of_its_codebook(finished: Finished, data: Path) -> None:
    distinct: set[int] = set()
    samples = [sample for _, sample in finished.samples()]
    assert len(samples) == len(NAMES) + 1
    for sample in samples:
        grid, flat = grid_of(sample), sample["codes.npy"]
        assert (flat.dtype, flat.shape) == (finished.dtype, (np.prod(grid),))
        distinct |= set(flat.tolist())
        if sample["json"]["source"] == "clips":
            assert grid == (FRAMES, *[finished.side // 2 // finished.factor] * 2)
            continue
        image = np.asarray(Image.open(data / "photos" / sample["json"]["key"]))
        size = (grid[1] * finished.factor, grid[2] * finished.factor)
        direct = finished.vision.encode_images(resize(image, size)[None])
        assert float((direct.reshape(-1) == flat).mean()) == 1.0
    assert len(distinct) >= 500
    assert (max(distinct) > np.iinfo(np.uint16).max) == (finished.dtype is np.uint32)
    assert verify(finished.chain.store, "", deep=True) == []


def test_packs_hold_the_archives_codes_and_decode_to_the_same_pixels(finished: Finished) -> None:
    packed = packed_pictures(finished.chain, finished.vision)
    for _, sample in finished.samples():
        codes = sample["codes.npy"].astype(np.uint32).reshape(grid_of(sample))
        if sample["json"]["source"] == "photos":
            frames = finished.vision.decode_images(codes)
            np.testing.assert_array_equal(packed.pop(codes.tobytes()), frames)
    frames_of_clips = np.concatenate([np.stack(frames) for frames in packed.values()])
    assert len(frames_of_clips) == FRAMES  # in runs where the whole clip is longer than a context
    assert frames_of_clips.shape[1:] == (finished.side // 2, finished.side // 2, 3)


@pytest.mark.parametrize("finished", ["ibq"], indirect=True)
def test_report_and_inspection_decode_them(finished: Finished, tmp_path: Path) -> None:
    page = report_page(finished.chain.store, finished.chain.recipe, finished.chain)
    assert page.count("mean PSNR") == 2
    archive, sample = next(finished.samples())
    inspect_path(archive, sample["json"]["key"], tmp_path)
    (written,) = tmp_path.glob("*.png")
    grid = grid_of(sample)
    assert Image.open(written).size == (grid[2] * finished.factor, grid[1] * finished.factor)


def test_vocabulary_of_fewer_codes_than_the_tokenizer_is_refused_before_anything_starts(
    data: Path, tmp_path: Path
) -> None:
    write_ibq(tmp_path / "tokenizer")
    with pytest.raises(RecipeError, match=r"tokenize\.vision: .* has 131072 codes, the vocabulary 2048; set"):
        check_chain(chain_of(data, tmp_path, codes=2048, side=64))


def test_tokenizer_of_a_plug_in_with_more_codes_than_the_vocabulary_ends_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vision.BUILT_IN, "mine", "tests.small_vision:load_ibq_of")
    path = str(write_ibq(tmp_path / "tokenizer"))
    chain = chain_of(data, tmp_path, codes=2048, side=64, vision={"name": "mine", "path": path})
    check_chain(chain)
    with pytest.raises(RunError, match="the vision tokenizer has 131072 codes, the vocabulary 2048"):
        list(chain.snapshots("tokenize"))
