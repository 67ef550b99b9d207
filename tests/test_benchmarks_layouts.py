"""Each benchmark is drawn into the files its own scorer looks for, by the names in its repository, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import polars as pl
import pytest
from PIL import Image
from tests.drawn_benchmarks import SIDE_PX, SIZE, V, export_model, names_below, write_json_lines

from tokenmill.cli import main, parse
from tokenmill.generate.pictures import decode_ids
from tokenmill.tokenize.vision import load_vision_tokenizer

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "two_object", "include": [{"class": "clock", "count": 1}], "prompt": "a photo of a bench\u2028and a clock"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return export_model(tmp_path_factory.mktemp("model"))


def evaluate(capsys: Any, name: str, model: Path, prompts: Path, out: Path, *more: str) -> dict[str, Any]:
    """Run the command and return what it prints as JSON."""
    words = ["evaluate", name, "--model", str(model), "--prompts", str(prompts), "--out", str(out), *SIZE, "--json"]
    assert main([*words, *more]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def tokens(folder: Path) -> pl.DataFrame:
    return pl.concat(pl.read_parquet(path) for path in sorted(folder.glob("tokens-*.parquet"))).sort("file", "sample")


def listed(folder: Path) -> list[str]:
    """Return the names that a scorer's `os.listdir` finds, hidden ones too."""
    return [path.name for path in folder.iterdir()]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_geneval_has_a_folder_a_line_with_its_own_line_and_four_pictures(model, tmp_path, capsys):
    prompts = write_json_lines(
        tmp_path / "evaluation_metadata.jsonl", [GENEVAL[0], "{broken", {"tag": "x"}, GENEVAL[1]]
    )
    found = evaluate(capsys, "geneval", model, prompts, tmp_path / "out")
    assert [name for name in names_below(tmp_path / "out") if not name.startswith("tokens-")] == [
        *(f"00000/{name}" for name in ("metadata.jsonl", *(f"samples/000{sample}.png" for sample in range(4)))),
        *(f"00003/{name}" for name in ("metadata.jsonl", *(f"samples/000{sample}.png" for sample in range(4)))),
        "asked.jsonl",
        "run.json",
    ]
    for folder, row in (("00000", GENEVAL[0]), ("00003", GENEVAL[1])):
        assert (tmp_path / "out" / folder / "metadata.jsonl").read_text() == json.dumps(row)
    assert found["left_out"] == {"no_prompt": 1, "not_json": 1}
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [row["where"][-6:] for row in run["left_out"]] == ["line 2", "line 3"]
    assert run["drawn"] == {"files": 8, "samples": 8}
    assert run["settings"]["guidance"] == 2.0
    assert len(run["model"]) == 64


def test_ids_beside_the_pictures_decode_to_them_and_seeds_differ(model, tmp_path, capsys):
    prompts = write_json_lines(tmp_path / "evaluation_metadata.jsonl", GENEVAL)
    evaluate(capsys, "geneval", model, prompts, tmp_path / "out")
    rows = tokens(tmp_path / "out")
    vision = load_vision_tokenizer("scenes")
    for row in rows.iter_rows(named=True):
        (frame,) = decode_ids(row["ids"], V, vision)
        picture = Image.open(tmp_path / "out" / row["file"])
        assert np.array_equal(frame, np.asarray(picture))
        assert (picture.text["prompt"], picture.text["seed"]) == (row["prompt"], str(row["seed"]))
    assert rows["seed"].n_unique() == 8
    assert len({row["ids"][-8:].__repr__() for row in rows.iter_rows(named=True)}) > 4


def test_paper_s_guidance_is_the_benchmark_s_own(model, tmp_path, capsys):
    prompts = write_json_lines(tmp_path / "evaluation_metadata.jsonl", GENEVAL[:1])
    words = ["evaluate", "geneval", "samples=1", "--model", str(model), "--prompts", str(prompts)]
    assert main([*words, "--out", str(tmp_path / "out"), "--height", "16", "--width", "16"]) == 0
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert (settings["guidance"], settings["top_k"], settings["top_p"]) == (5.5, 16_384, 1.0)


def test_compbench_numbers_pictures_through_the_file_and_names_them_by_the_prompt(model, tmp_path, capsys):
    prompts = tmp_path / "color_val.txt"
    prompts.write_text("a green bench and a blue bowl\tcolor\r\nup/down\n" + "x" * 250 + "\na red apple.\n")
    found = evaluate(capsys, "t2i-compbench", model, prompts, tmp_path / "out", "samples=2")
    assert sorted(listed(tmp_path / "out" / "samples")) == [
        "a green bench and a blue bowl_000000.png",
        "a green bench and a blue bowl_000001.png",
        "a red apple._000006.png",
        "a red apple._000007.png",
    ]
    assert found["left_out"] == {"no_file_name": 2}
    rows = [json.loads(line) for line in (tmp_path / "out" / "asked.jsonl").read_text().splitlines()]
    assert [row["category"] for row in rows] == ["color", "color"]


def test_compbench_s_scorers_find_number_and_prompt_in_every_name(model, tmp_path, capsys):
    (tmp_path / "non_spatial_val.txt").write_text("A dog runs\nA cat sleeps\n")
    evaluate(capsys, "t2i-compbench", model, tmp_path / "non_spatial_val.txt", tmp_path / "out", "--limit", "1")
    names = listed(tmp_path / "out" / "samples")
    assert sorted(int(name.split("_")[-1].split(".")[0]) for name in names) == list(range(10))
    assert {name.split("_")[0] for name in names} == {"A dog runs"}


def test_dpg_grid_holds_four_pictures_row_by_row(model, tmp_path, capsys):
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "partiprompts1.txt").write_text("a " + "very " * 20 + "long prompt\n")
    (folder / "256.txt").write_text("two")
    (folder / "7.txt").write_text(" \n")
    found = evaluate(capsys, "dpg-bench", model, folder, tmp_path / "out")
    assert sorted(listed(tmp_path / "out" / "images")) == ["256.png", "partiprompts1.png"]
    assert found["scored"].endswith("/out/images")
    assert found["left_out"] == {"no_prompt": 1}
    grid = pixels(tmp_path / "out" / "images" / "256.png")
    assert grid.shape == (2 * SIDE_PX, 2 * SIDE_PX, 3)
    vision = load_vision_tokenizer("scenes")
    rows = tokens(tmp_path / "out").filter(pl.col("name") == "256")
    places = [(0, 0), (0, SIDE_PX), (SIDE_PX, 0), (SIDE_PX, SIDE_PX)]
    assert rows["sample"].to_list() == [0, 1, 2, 3]
    for ids, (top, left) in zip(rows["ids"], places, strict=True):
        (frame,) = decode_ids(ids.to_list(), V, vision)
        assert np.array_equal(grid[top : top + SIDE_PX, left : left + SIDE_PX], frame)


def test_vbench_names_clips_by_prompt_and_index_and_keeps_the_dimensions(model, tmp_path, capsys):
    info = [
        {"prompt_en": "In a still frame, a stop sign", "dimension": ["temporal_flickering"]},
        {"prompt_en": "a bird and a cat", "dimension": ["multiple_objects"], "auxiliary_info": {"object": "bird"}},
        {"prompt_en": "a bird and a cat", "dimension": ["overall_consistency", "aesthetic_quality"]},
        {"prompt_en": "a red car", "dimension": ["color"]},
    ]
    prompts = tmp_path / "VBench_full_info.json"
    prompts.write_text(json.dumps(info))
    asked = ("samples=2", "still_samples=3", "dimensions=temporal_flickering,aesthetic_quality")
    evaluate(capsys, "vbench", model, prompts, tmp_path / "out", *asked, "--fps", "8", "--seconds", "1")
    assert sorted(listed(tmp_path / "out" / "videos")) == [
        *(f"In a still frame, a stop sign-{index}.mp4" for index in range(3)),
        *(f"a bird and a cat-{index}.mp4" for index in range(2)),
    ]
    assert json.loads((tmp_path / "out" / "VBench_full_info.json").read_text()) == info
    rows = [json.loads(line) for line in (tmp_path / "out" / "asked.jsonl").read_text().splitlines()]
    assert [row["dimension"] for row in rows] == [
        ["temporal_flickering"],
        ["multiple_objects", "overall_consistency", "aesthetic_quality"],
    ]
    with av.open(str(tmp_path / "out" / "videos" / "a bird and a cat-1.mp4")) as clip:
        stream = clip.streams.video[0]
        assert float(stream.average_rate) == 8.0
        assert len(list(clip.decode(stream))) == 8


def test_vbench_prompts_per_dimension_name_their_dimensions_by_the_file(model, tmp_path, capsys):
    folder = tmp_path / "prompts_per_dimension"
    folder.mkdir()
    (folder / "scene.txt").write_text("alley\n")
    (folder / "subject_consistency.txt").write_text("a cow\n")
    evaluate(capsys, "vbench", model, folder, tmp_path / "out", "samples=1", "--fps", "4", "--seconds", "1")
    rows = [json.loads(line) for line in (tmp_path / "out" / "asked.jsonl").read_text().splitlines()]
    assert {row["prompt"]: row["dimension"] for row in rows} == {
        "alley": ["background_consistency", "scene"],
        "a cow": ["subject_consistency", "motion_smoothness", "dynamic_degree"],
    }


def captions(path: Path, count: int) -> Path:
    """Write COCO's captions: two a photograph."""
    images = [{"id": 100 + n, "file_name": f"COCO_val2014_{100 + n:012d}.jpg"} for n in range(count)]
    rows = [
        {"id": 7 + 2 * n + k, "image_id": 100 + n, "caption": f"thing {n}\n, told {k} "}
        for n in range(count)
        for k in (0, 1)
    ]
    path.write_text(json.dumps({"images": images, "annotations": rows}))
    return path


def test_coco_draws_one_caption_a_photograph_by_seed_and_names_files_by_its_id(model, tmp_path, capsys):
    prompts = captions(tmp_path / "captions_val2014.json", 9)
    evaluate(capsys, "coco30k", model, prompts, tmp_path / "out", "number=4")
    rows = [json.loads(line) for line in (tmp_path / "out" / "asked.jsonl").read_text().splitlines()]
    assert sorted(listed(tmp_path / "out" / "images")) == sorted(f"{row['name']}.png" for row in rows)
    assert len({row["image_id"] for row in rows}) == 4
    for row in rows:
        assert row["image_id"] == 100 + (int(row["name"]) - 7) // 2
        assert row["reference"] == f"COCO_val2014_{row['image_id']:012d}.jpg"
        assert re.fullmatch(r"thing \d , told [01]", row["prompt"])
    assert main(["evaluate", "coco30k", "number=4", "choice_seed=1", "--model", str(model), "--prompts", str(prompts),
                 "--out", str(tmp_path / "out"), *SIZE]) == 2  # fmt: skip
    assert "was drawn with another prompts" in capsys.readouterr().err


def test_coco_takes_a_list_of_ids(model, tmp_path, capsys):
    prompts = captions(tmp_path / "captions_val2014.json", 4)
    (tmp_path / "ids.txt").write_text("9 8\n14 9")
    evaluate(capsys, "coco30k", model, prompts, tmp_path / "out", f"ids={tmp_path}/ids.txt")
    assert sorted(listed(tmp_path / "out" / "images")) == ["14.png", "8.png", "9.png"]
    (tmp_path / "ids.txt").write_text("9 800")
    words = ["evaluate", "coco30k", f"ids={tmp_path}/ids.txt", "--model", str(model), "--prompts", str(prompts)]
    assert main([*words, "--out", str(tmp_path / "other"), *SIZE]) == 2
    assert "has no annotation 800" in capsys.readouterr().err


def test_rewritten_prompt_is_what_the_model_gets_and_the_name_stays(model, tmp_path, capsys):
    (tmp_path / "color_val.txt").write_text("a red apple\na blue cup\n")
    rewritten = write_json_lines(
        tmp_path / "rewritten.jsonl", [{"prompt": "a red apple", "rewritten": "a photograph of one ripe, red apple"}]
    )
    more = ("samples=1", "--rewritten", str(rewritten))
    found = evaluate(capsys, "t2i-compbench", model, tmp_path / "color_val.txt", tmp_path / "out", *more)
    plain = evaluate(capsys, "t2i-compbench", model, tmp_path / "color_val.txt", tmp_path / "plain", "samples=1")
    assert (found["rewritten"], plain["rewritten"]) == (1, 0)
    assert names_below(tmp_path / "out" / "samples") == names_below(tmp_path / "plain" / "samples")
    rows = tokens(tmp_path / "out")
    assert rows["text"].to_list() == ["a blue cup", "a photograph of one ripe, red apple"]
    assert rows["prompt"].to_list() == ["a blue cup", "a red apple"]
    one, two = (
        bytes((tmp_path / where / "samples" / "a red apple_000000.png").read_bytes()) for where in ("out", "plain")
    )
    assert one != two
    words = V.text.encode("a photograph of one ripe, red apple")
    assert rows["ids"][1].to_list()[1 : len(words) + 1] == words


def test_word_behind_evaluate_is_a_benchmark_and_a_file_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "geneval").write_text("")
    assert parse(["evaluate", "vbench", "--out", "x"]).command == "evaluate-benchmark"
    assert parse(["evaluate", "geneval"]).command == "evaluate"
    assert parse(["evaluate", "recipe.yaml"]).command == "evaluate"
