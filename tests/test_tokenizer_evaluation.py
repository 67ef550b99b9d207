"""`tokenmill evaluate tokenizer` with the shipped tokenizer, on folders, shards and clips, whole and broken."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests import tiny
from tests.tiny import picture

from tokenmill.cli import main, parse
from tokenmill.demo.clip_folder import encode_mp4
from tokenmill.demo.scenes import motion, render_motion
from tokenmill.generate.frechet import Moments, frechet_distance
from tokenmill.generate.reconstruction_tally import Measures, Sample, Tally
from tokenmill.manifests.archive import ArchiveWriter
from tokenmill.pipelines.decode_image import decode_image
from tokenmill.pipelines.decode_video import VideoDecoder
from tokenmill.pipelines.tokenizer_evaluation import fitting
from tokenmill.tokenize.picture_quality import psnr_db, ssim
from tokenmill.tokenize.preprocess import resize
from tokenmill.tokenize.vision import load_vision_tokenizer
from tokenmill.train.vision_perceptual import ALEX_CONVOLUTIONS, load_lpips


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two sizes and broken ones in a folder, others and a clip in a shard, two clips beside."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "photos" / "deep").mkdir(parents=True)
    for seed in range(3):
        (folder / "photos" / f"{seed}.png").write_bytes(picture(seed, 72))
    (folder / "photos" / "deep" / "small.PNG").write_bytes(picture(3, 40))
    (folder / "photos" / "broken.jpg").write_bytes(b"this is no picture")
    Image.new("RGB", (400, 20)).save(folder / "photos" / "long.png")
    (folder / "photos" / "notes.txt").write_text("nothing to measure")
    (folder / "clips").mkdir()
    encode_mp4(folder / "clips" / "a.mp4", render_motion(motion(0), 10, 64), 12)
    encode_mp4(folder / "clips" / "short.mp4", render_motion(motion(1), 3, 64), 12)
    with ArchiveWriter(folder / "00000.tar") as writer:
        writer.add("one", {"png": picture(5, 64), "txt": b"a caption"})
        writer.add("two", {"mp4": (folder / "clips" / "a.mp4").read_bytes(), "json": b"{}"})
    return folder


@pytest.fixture(scope="module")
def lpips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of LPIPS, under lpips's names."""
    state, inner, place = {}, 3, 0
    for index, (out, side, _, _, pooled) in enumerate(ALEX_CONVOLUTIONS):
        generator = torch.Generator().manual_seed(index)
        state[f"features.{place}.weight"] = torch.randn(out, inner, side, side, generator=generator) / 20
        state[f"features.{place}.bias"] = torch.zeros(out)
        state[f"lin{index}.model.1.weight"] = torch.rand(1, out, 1, 1, generator=generator)
        inner, place = out, place + 2 + pooled
    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    save_file(state, path)
    return path


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", "tokenizer", "scenes", "--json", *arguments]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def row_of(found: dict[str, Any], kind: str, side_px: int) -> dict[str, Any]:
    (row,) = (one for one in found["rows"] if (one["kind"], one["side_px"]) == (kind, side_px))
    return row


def test_figures_of_pictures_are_those_of_each_taken_alone(
    data: Path, lpips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(capsys, "--data", str(data / "photos"), "--sizes", "64,32", "--lpips", str(lpips))
    vision, distance = load_vision_tokenizer("scenes"), load_lpips(lpips)
    for side_px, paths in ((64, ("0", "1", "2")), (32, ("0", "1", "2", "deep/small"))):
        psnrs, ssims, lpipses, codes = [], [], [], []
        for name in paths:
            (file,) = (data / "photos").glob(f"{name}.[pP]*")
            original = resize(decode_image(file.read_bytes(), max_pixels=10**6), (side_px, side_px))[None]
            coded = vision.encode_images(original)
            decoded = vision.decode_images(coded)
            psnrs.append(psnr_db(original, decoded))
            ssims.append(ssim(original, decoded)[0])
            pair = (torch.from_numpy(one.copy()).movedim(-1, 1) / 127.5 - 1 for one in (original, decoded))
            lpipses.append(float(distance(*pair)))
            codes += coded.ravel().tolist()
        row = row_of(found, "image", side_px)
        assert (row["samples"], row["frames"], row["codes"]) == (len(paths), len(paths), len(codes))
        assert row["psnr_db"] == pytest.approx(np.mean(psnrs), abs=0.02)
        assert row["ssim"] == pytest.approx(np.mean(ssims), abs=1e-3)
        assert row["lpips"] == pytest.approx(np.mean(lpipses), rel=0.02)
        assert row["codes_seen"] == pytest.approx(len(set(codes)), abs=2)
        shares = np.unique(codes, return_counts=True)[1] / len(codes)
        assert row["perplexity"] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=0.02)
    assert row_of(found, "image", 64)["left_out"] == {"aspect_too_large": 1, "smaller": 1}
    assert row_of(found, "image", 32)["left_out"] == {"aspect_too_large": 1}
    assert found["failed"] == {"image": {"not_an_image": 1}}


def test_every_frame_of_a_clip_is_compared_in_windows(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capsys, "--data", str(data / "clips"), "--sizes", "64,48")
    vision = load_vision_tokenizer("scenes")
    with VideoDecoder() as decoder:
        (frames,) = decoder.scan(data / "clips" / "a.mp4")
    for side_px in (64, 48):
        whole = np.stack([resize(frame, (side_px, side_px)) for frame in frames[:8]])
        decoded = vision.decode_video(vision.encode_video(whole[None]))[0]
        wanted = np.mean([psnr_db(one, two) for one, two in zip(whole, decoded, strict=True)])
        row = row_of(found, "video", side_px)
        assert (row["samples"], row["frames"], row["codes"]) == (1, 8, 2 * (side_px // 8) ** 2)
        assert row["psnr_db"] == pytest.approx(wanted, abs=0.02)
        assert row["lpips"] is row["frechet"] is None
    assert found["failed"] == {"video": {"too_short": 1}}


def test_shards_folders_and_files_are_read_alike_up_to_the_limit(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = (str(data / "00000.tar"), str(data / "photos"), str(data / "clips" / "a.mp4"))
    found = evaluated(capsys, "--data", *everything, "--sizes", "32", "--limit", "2")
    assert found["taken"] == {"image": 2, "video": 2}
    assert row_of(found, "image", 32)["samples"] == 2
    cut = tmp_path / "cut.tar"
    cut.write_bytes((data / "00000.tar").read_bytes()[:700])
    broken = evaluated(capsys, "--data", str(cut), str(data / "photos" / "0.png"), "--sizes", "32")
    assert sum(broken["failed"]["image"].values()) >= 1
    assert row_of(broken, "image", 32)["samples"] == 1


def test_table_stands_beside_the_papers(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate-tokenizer", "scenes", "--data", str(data), "--sizes", "64"]) == 0
    table = capsys.readouterr().out
    for told in ("21.71", ".099", ".630", "24.30", "3,172 Pexels videos", "image   64²", "smaller 1", "not_an_image 1"):
        assert told in table


def test_tally_of_features_is_the_frechet_distance_of_both_sets() -> None:
    def features(pictures: Any) -> Any:
        return pictures.reshape(len(pictures), -1)[:, :3].astype(np.float64)

    random_of = np.random.default_rng(0)
    tally, one, two = Tally(16, Measures(features=features)), Moments(), Moments()
    for _ in range(5):
        original, decoded = (random_of.integers(0, 256, (2, 12, 12, 3), dtype=np.uint8) for _ in range(2))
        tally.compare(sample := Sample(), original, decoded, np.array([[3, 3], [5, 15]]))
        tally.finish(sample)
        one.add(features(original))
        two.add(features(decoded))
    row = tally.row()
    assert row["frechet"] == pytest.approx(frechet_distance(one, two))
    assert (row["codes_seen"], row["codebook_usage"]) == (3, 3 / 16)
    assert row["perplexity"] == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)))


def test_picture_is_never_enlarged() -> None:
    assert fitting(64, 64, 64, 8) == (64, 64)
    assert fitting(480, 640, 128, 16) == (96, 144)
    for size in ((63, 64), (40, 100)):
        with pytest.raises(Exception, match="smaller"):
            fitting(*size, 64, 8)
    with pytest.raises(Exception, match="too_small"):
        fitting(40, 200, 20, 8)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["scenes", "--data", "absent"], 2, "no picture, clip or shard"),
        (["scenes", "--data", "{photos}", "--lpips", "absent"], 2, "LPIPS"),
        (["scenes", "--data", "{photos}", "--features", "absent"], 2, "cannot be read"),
        (["absent/absent/absent", "--data", "{photos}"], 2, "absent"),
        (["scenes", "speed=9", "--data", "{photos}"], 2, "speed"),
        (["scenes", "speed", "--data", "{photos}"], 2, "option=value"),
        (["scenes", "--data", "{photos}", "--limit", "0"], 2, "--limit 0"),
        (["scenes", "--data", "{photos}", "--sizes", "512"], 1, "nothing could be measured: not_an_image 1, smaller 5"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(
    data: Path, arguments: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [one.replace("{photos}", str(data / "photos")) for one in arguments]
    assert main(["evaluate", "tokenizer", *given]) == code
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_recipe_is_still_evaluated_by_the_same_word() -> None:
    assert parse(["evaluate", "recipe.yaml", "a=1"]).command == "evaluate"
    options = parse(["evaluate", "tokenizer", "scenes", "dtype=bfloat16", "--data", "x", "--sizes", "64"])
    assert (options.command, options.spec, options.overrides, options.sizes) == (
        "evaluate-tokenizer", "scenes", ["dtype=bfloat16"], (64,),
    )  # fmt: skip
    for sizes in ("8", "x", "", "64,9999"):
        with pytest.raises(SystemExit, match="2"):
            parse(["evaluate", "tokenizer", "scenes", "--data", "x", "--sizes", sizes])


def test_recipe_stands_for_what_it_selected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_data(tmp_path / "data")
    sources = ("photos", "clips")
    path = tiny.write_recipe(tmp_path / "tiny.yaml", tmp_path / "data", str(tmp_path / "root"), sources=sources)
    assert main(["evaluate", "tokenizer", "scenes", "--data", str(path)]) == 1
    assert "missing" in capsys.readouterr().err
    assert main(["run", str(path), "--until", "select", "--json"]) == 0
    kept = {row["stage"]: row["kept"] for row in json.loads(capsys.readouterr().out)["stages"]}
    found = evaluated(capsys, "--data", str(path), "--sizes", "32")
    assert found["taken"]["image"] == row_of(found, "image", 32)["samples"] == 3
    assert sum(found["taken"].values()) == kept["select"]
    assert row_of(found, "video", 32)["frames"] > 0
