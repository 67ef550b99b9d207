"""Emu3's image recipe as shipped, on real pictures and a small CLIP: whom its rules drop, and whom they rescue."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import skimage.data
from PIL import Image, ImageDraw, ImageFont
from tests import tiny_clip

from tokenmill.captions.captioner import build_captioner
from tokenmill.captions.choice import chosen
from tokenmill.manifests.archive import ArchiveWriter
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.fates import fates_of
from tokenmill.recipe import load_recipe

RECIPE = Path(__file__).parents[1] / "pipelines" / "recipes" / "emu3-images.yaml"


def _pictures() -> dict[str, Image.Image]:
    photograph = Image.fromarray(skimage.data.coffee()).resize((800, 600))
    page = Image.fromarray(skimage.data.page()).convert("RGB").resize((1152, 573))
    return {
        "astronaut": Image.fromarray(skimage.data.astronaut()).resize((640, 640)),
        "coffee": photograph,
        "grey": photograph.convert("L").convert("RGB"),
        "small": photograph.resize((680, 510)),
        "page": _tinted(page),
        "scan": _tinted(_scan()),
        "blank": Image.new("RGB", (600, 600), (230, 230, 230)),
        "banner": photograph.resize((3000, 580)),
        "copy": photograph.resize((780, 585)),
    }


def _tinted(page: Image.Image) -> Image.Image:
    """Make the upper half yellow and the lower half blue: colourful, and full of text."""
    coloured = Image.blend(page, Image.linear_gradient("L").resize(page.size).convert("RGB"), 0.2)
    tinted, middle = np.asarray(coloured).copy(), page.height // 2
    tinted[:middle, :, 2] //= 3
    tinted[middle:, :, 0] //= 3
    return Image.fromarray(tinted)


def _scan() -> Image.Image:
    """Set a page of A4 in ten points at 300 dots an inch: 8.7 megapixels, of which letters are 31 pixels high."""
    image = Image.new("RGB", (2480, 3508), (255, 250, 235))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(42)
    for top in range(300, 3200, 61):
        draw.text((200, top), "It was the best of times, it was the worst of times, " * 2, font=font, fill=0)
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("emu3")
    (folder / "shards").mkdir()
    with ArchiveWriter(folder / "shards" / "00000.tar") as writer:
        for key, image in _pictures().items():
            path = folder / f"{key}.jpg"
            image.save(path, quality=92)
            writer.add(key, {"jpg": path.read_bytes(), "txt": key.encode()})
    tiny_clip.write_folder(folder / "clip")
    return folder


def _chain(folder: Path, score: float) -> Chain:
    """Return the recipe with a small CLIP and a linear head that gives everything the same score."""
    import torch

    head = folder / f"head-{score}.pth"
    torch.save({"weight": torch.zeros(1, tiny_clip.DIMENSION), "bias": torch.tensor([score])}, head)
    aesthetic = f"filter.image.scorers.aesthetic={{model: {folder / 'clip'}, head: {head}, when: min_side_px >= 512}}"
    changes = [f"root={folder / f'root-{score}'}", f"sources.web.url={folder / 'shards'}", aesthetic]
    changes += ["execution={executor: inline}", "tokenize.vocabulary={name: bytes}", "tokenize.vision={name: scenes}"]
    changes += ["caption.image={engine: metadata, fields: [caption]}"]  # no server here
    return Chain(recipe=load_recipe(RECIPE, changes), options=ChainOptions(quiet=True))


def _fates(chain: Chain) -> dict[str, str]:
    rows = pl.concat(
        snapshot.folder.read_rows(commit) for snapshot in chain.select.values() for commit in snapshot.commits
    )
    return {key: reason or "kept" for key, reason in rows.select("key", "drop_reason").iter_rows()}


def test_emu3_recipe_keeps_what_is_beautiful_whether_or_not_it_is_colourful(folder):
    fates = _fates(_chain(folder, 6.0))
    assert fates == {
        "astronaut": "kept",
        "coffee": "kept",
        "grey": "near_duplicate",  # of the coffee: a hash sees no colours
        "small": "resolution",
        "page": "kept",
        "scan": "kept",
        "blank": "blank",
        "banner": "aspect",
        "copy": "near_duplicate",
    }


def test_emu3_recipe_rescues_colourful_pictures_without_text_from_its_aesthetic_rule(folder):
    chain = _chain(folder, 3.0)
    fates = _fates(chain)
    assert (fates["astronaut"], fates["coffee"], fates["copy"]) == ("kept", "kept", "near_duplicate")
    assert [fates[key] for key in ("grey", "page", "scan")] == ["aesthetic"] * 3
    (snapshot,) = chain.select.values()
    assert snapshot.totals["rescued.aesthetic"] == 3  # both photographs and the copy
    assert Counter(fate.split(":")[0] for fate in fates_of(chain).values()).keys() >= {"dropped"}


def test_emu3_recipe_asks_for_text_only_where_the_answer_counts(folder):
    chain = _chain(folder, 3.0)
    scored = {s.folder.config.settings["scorer"]: s for s in chain.score["web"]}
    (commit,) = scored["text_coverage"].commits
    rows = scored["text_coverage"].folder.read_rows(commit)
    asked = set(rows.filter(pl.col("text_coverage").is_not_null())["key"])
    assert asked == {"astronaut", "coffee", "page", "scan", "banner", "copy"}  # not the small, grey and blank ones


def test_emu3_recipe_asks_a_server_for_dense_captions_and_mixes_the_source_s_own_in():
    captions = load_recipe(RECIPE).caption["image"]
    assert {name: build_captioner(one.engine, one.options).asks for name, one in captions.columns.items()} == {
        "dense": True,
        "original": False,
    }
    usable = {"dense": ["a long one"], "original": ["short"]}
    drawn = Counter(
        one.column
        for number in range(1000)
        for one in chosen(captions.slots, usable, key=f"{number:09d}", seed=captions.seed)
    )
    assert drawn["dense"] + drawn["original"] == 1000
    assert 60 <= drawn["original"] <= 140
    assert [one.column for one in chosen(captions.slots, {"original": ["short"]}, key="a", seed=0)] == ["original"]
