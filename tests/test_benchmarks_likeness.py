"""FID, CLIP-I and CLIP-T of what was drawn for COCO's captions, against the same figures computed by other means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import scipy.linalg
import skimage.data
import torch
from PIL import Image
from safetensors.torch import save_file
from tests import tiny_clip
from tests.drawn_benchmarks import SIDE_PX, SIZE, export_model
from transformers import Dinov2Config, Dinov2Model, ViTImageProcessor

from tokenmill.cli import main
from tokenmill.generate.inception import FidInception
from tokenmill.pipelines.benchmarks.likeness import fitted

COUNT = 6


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """Draw six captions and put photographs of other sizes and shapes beside."""
    root: Path = tmp_path_factory.mktemp("coco")
    images = [{"id": n, "file_name": f"COCO_val2014_{n:012d}.png"} for n in range(COUNT)]
    captions = ("a face", "a man on a horse", "zwei Tassen", "a very long street", "snow", "a cat")
    rows = [{"id": 50 + n, "image_id": n, "caption": text} for n, text in enumerate(captions)]
    (root / "captions_val2014.json").write_text(json.dumps({"images": images, "annotations": rows}))
    (root / "val2014").mkdir()
    photograph = skimage.data.astronaut()
    for n, image in enumerate(images):
        part = photograph[30 * n : 30 * n + 40 + 8 * n, 60 * n : 60 * n + 72]
        Image.fromarray(part).save(root / "val2014" / str(image["file_name"]))
    model = export_model(root / "model")
    words = ["--model", str(model), "--prompts", f"{root}/captions_val2014.json", "--out", f"{root}/out", *SIZE]
    assert main(["evaluate", "coco30k", *words]) == 0
    return root


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """Write an image encoder of 8 numbers with random weights."""
    folder: Path = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(3)
    config = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def pairs(root: Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return caption, drawn picture and photograph, cut and resized by PIL's own means."""
    found = []
    for line in (root / "out" / "asked.jsonl").read_text().splitlines():
        row = json.loads(line)
        photograph = Image.open(root / "val2014" / row["reference"])
        width, height = photograph.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        square = photograph.crop((left, top, left + side, top + side)).resize(
            (SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC
        )
        found.append((row["prompt"], np.array(Image.open(root / "out" / row["files"][0])), np.array(square)))
    return found


def measured(capsys: Any, root: Path, *more: str) -> dict[str, Any]:
    capsys.readouterr()
    words = ["--out", f"{root}/out", "--references", f"{root}/val2014", "--json", *more]
    assert main(["evaluate", "coco30k", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def values(found: dict[str, Any]) -> dict[str, float]:
    return {row["measure"]: row["value"] for row in found["rows"] if row["value"] is not None}


def test_cosines_are_those_of_open_clip_itself(drawn, tmp_path, capsys):
    folder = tiny_clip.write_folder(tmp_path / "clip")
    found = values(measured(capsys, drawn, "--clip", str(folder)))
    model, tokenizer = tiny_clip.build(), open_clip.get_tokenizer("ViT-B-32")
    transform = open_clip.image_transform(tiny_clip.SIDE_PX, is_train=False)

    def unit(rows: torch.Tensor) -> np.ndarray:
        return torch.nn.functional.normalize(rows, dim=-1).numpy()

    with torch.no_grad():
        sides = [
            unit(model.encode_image(torch.stack([transform(Image.fromarray(pair[side])) for pair in pairs(drawn)])))
            for side in (1, 2)
        ]
        texts = unit(model.encode_text(tokenizer([pair[0] for pair in pairs(drawn)])))
    assert found["CLIP-I"] == pytest.approx(float((sides[0] * sides[1]).sum(1).mean()), abs=1e-5)
    assert found["CLIP-T"] == pytest.approx(float((sides[0] * texts).sum(1).mean()), abs=1e-5)
    assert "FID" not in found


def test_distance_is_that_of_scipy_s_root_and_not_called_fid_for_another_encoder(drawn, encoder, capsys):
    found = measured(capsys, drawn, "--features", str(encoder))
    model = Dinov2Model.from_pretrained(encoder).eval()
    processor = ViTImageProcessor.from_pretrained(encoder)
    rows = []
    for side in (1, 2):
        inputs = processor([pair[side] for pair in pairs(drawn)], return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**inputs).pooler_output.double().numpy())
    means, spreads = [row.mean(0) for row in rows], [np.cov(row.T) for row in rows]
    root = scipy.linalg.sqrtm(spreads[0] @ spreads[1] + 1e-12 * np.eye(8))
    wanted = ((means[0] - means[1]) ** 2).sum() + np.trace(spreads[0] + spreads[1] - 2 * root.real)
    assert values(found) == {"Fréchet (dinov2)": pytest.approx(wanted, rel=1e-3)}
    assert [row["measure"] for row in found["rows"]] == ["Fréchet (dinov2)", "FID", "CLIP-I", "CLIP-T"]


def test_inception_s_distance_is_the_fid_and_its_file_reads_back(drawn, tmp_path, capsys):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(
            {name: value.half() for name, value in FidInception().network.state_dict().items()},
            tmp_path / "fid.safetensors",
        )
    found = measured(capsys, drawn, "--features", f"{tmp_path}/fid.safetensors")
    assert values(found)["FID"] > 0
    assert found["rows"][0]["paper"] == {"Emu3": 12.8}
    assert main(["evaluate", "coco30k", "--results", f"{drawn}/out/likeness.json", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert values(again) == values(found)


def test_photograph_that_is_missing_or_broken_is_told_and_costs_its_pair(drawn, encoder, tmp_path, capsys):
    folder = tmp_path / "val2014"
    folder.mkdir()
    for path in sorted((drawn / "val2014").iterdir())[1:]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "COCO_val2014_000000000003.png").write_bytes(b"no picture")
    capsys.readouterr()
    words = ["--out", f"{drawn}/out", "--references", str(folder), "--features", str(encoder), "--json"]
    assert main(["evaluate", "coco30k", *words]) == 0
    likeness = json.loads(capsys.readouterr().out)["likeness"]
    assert likeness["measures"][0]["count"] == COUNT - 2
    assert likeness["failed"]["no_photograph"] == 1
    assert sum(likeness["failed"].values()) == 2


def test_photograph_is_cut_around_its_centre_to_the_shape_of_the_drawing():
    ramp = np.zeros((30, 90, 3), np.uint8)
    ramp[:, 30:60] = 255
    assert (fitted(ramp, (8, 8)) == 255).all()
    assert fitted(ramp, (30, 90)) is not None
    assert (fitted(ramp, (30, 90)) == ramp).all()


@pytest.mark.parametrize(
    ("name", "more", "told"),
    [
        ("coco30k", [], "nothing to measure with"),
        ("coco30k", ["--features", "/nowhere"], "/nowhere"),
        ("geneval", ["--features", "x"], "no photographs to compare with"),
    ],
)
def test_measuring_without_what_it_needs_is_refused(name, more, told, drawn, capsys):
    assert main(["evaluate", name, "--out", f"{drawn}/out", "--references", f"{drawn}/val2014", *more]) == 2
    assert told in capsys.readouterr().err
