"""`tokenmill draw`: files that say how they came, ids kept beside, nothing drawn twice, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from tests.drawing_export import AREAS, V, clip_frames, random_export
from tokenizers import Tokenizer, models, pre_tokenizers

from tokenmill import __version__
from tokenmill.cli import main
from tokenmill.errors import RecipeError
from tokenmill.generate.drawn_files import TOKEN_COLUMNS, read_about
from tokenmill.generate.opened_model import open_model
from tokenmill.generate.pictures import decode_ids, parse_pictures
from tokenmill.generate.sample import generate_vision
from tokenmill.studio import Shape, open_studio
from tokenmill.tokenize.vision import load_vision_tokenizer
from tokenmill.tokenize.vocabulary import build_vocabulary

Drawn = dict[str, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with an export in it."""
    folder = tmp_path_factory.mktemp("run")
    random_export(folder / "export")
    return folder


@pytest.fixture
def draw(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command into `tmp_path/out`; returns its JSON."""

    def run(*words: object, at: Path = model) -> Drawn:
        code = main(["draw", str(at), *map(str, words), "--out", str(tmp_path / "out"), "--json"])
        told = capsys.readouterr()
        assert code == 0, told.err
        found: Drawn = json.loads(told.out)
        return found

    return run


def test_picture_says_how_it_was_drawn_and_its_ids_are_kept(draw, model, tmp_path):
    asked = ("ein Käfer, 中", "--negative", "a bug", "--seed", 7, "--top-p", 0.9, "--guidance", 2, "--temperature", 1.5)
    (row,) = draw(*asked, "--size", "24x40")["pictures"]
    data = (tmp_path / "out" / row["file"]).read_bytes()
    picture = Image.open(tmp_path / "out" / row["file"])
    assert (picture.size, row["grid"]) == ((40, 24), [3, 5])
    assert (picture.text["prompt"], picture.text["negative_prompt"], picture.text["seed"]) == (asked[0], "a bug", "7")
    about = read_about(data)
    opened = open_model(str(model))
    expected = {
        "prompt": asked[0], "negative": "a bug", "seed": 7, "grid": [3, 5], "latent_frames": 1, "top_k": 2048,
        "top_p": 0.9, "guidance": 2.0, "temperature": 1.5, "model": opened.fingerprint, "model_name": model.name,
        "vocabulary": V.fingerprint, "vision": opened.vision.fingerprint, "dtype": "float32", "device": "cpu",
        "tokenmill": __version__, "schema": 1,
    }  # fmt: skip
    assert about == expected
    assert {name: row[name] for name in expected} == expected
    tokens = pl.read_parquet(tmp_path / "out" / row["tokens"])
    assert dict(tokens.schema) == TOKEN_COLUMNS
    (ids,) = tokens.filter(pl.col("file") == row["file"])["ids"].to_list()
    assert np.array_equal(decode_ids(ids, V, opened.vision)[0], np.asarray(picture))
    loaded = opened.model
    (by_hand,) = generate_vision(
        loaded.model, V, [asked[0]], 3, 5, top_p=0.9, guidance=2, temperature=1.5, negative="a bug", seed=7
    )
    assert ids == by_hand.tolist()


def test_clip_says_how_it_was_drawn_in_its_tags(draw, tmp_path):
    report = draw("a ball rolls", "--seconds", 1.1, "--fps", 8, "--size", "16x32")
    (row,) = report["pictures"]
    data = (tmp_path / "out" / row["file"]).read_bytes()
    frames, tags = clip_frames(data)
    assert frames.shape == (8, 16, 32, 3)
    assert tags["title"] == "a ball rolls"
    assert read_about(data) == json.loads(tags["comment"])
    told = {"seconds": 1.0, "fps": 8.0, "latent_frames": 2, "grid": [2, 4], "frames": 8, "seed": 0}
    assert {name: row[name] for name in told} == told
    assert Image.open(tmp_path / "out" / report["sheet"]["file"]).width > 256


def test_again_draws_nothing_and_more_samples_only_those(draw, tmp_path):
    first = draw("a", "b", "--samples", 2, "--size", "16x16", "--batch-size", 1)
    assert (first["drawn"], first["found"]) == (4, 0)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    again = draw("a", "b", "--samples", 2, "--size", "16x16", "--batch-size", 3)
    assert (again["drawn"], again["found"]) == (0, 4)
    assert again["pictures"] == first["pictures"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    more = draw("b", "c", "--samples", 3, "--size", "16x16")
    assert (more["drawn"], more["found"]) == (4, 2)
    assert more["pictures"][:2] == first["pictures"][2:]
    assert [row["seed"] for row in more["pictures"]] == [0, 1, 2, 0, 1, 2]
    index = json.loads((tmp_path / "out" / "generated.json").read_text())
    assert len(index["pictures"]) == 8
    assert main(["verify", str(tmp_path), "--deep"]) == 0


def test_progress_and_files_are_told_to_people(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tokenmill.commands_model._LINE_EVERY_S", 0.0)
    asked = ["a", "б", "--size", "24x24", "--batch-size", "1", "--out", str(tmp_path / "out")]
    assert main(["draw", str(model), *asked]) == 0
    told = capsys.readouterr()
    files, (last,) = told.out.splitlines()[:-1], told.out.splitlines()[-1:]
    assert [line.partition("  ")[2] for line in files] == ["3×3 codes, seed 0"] * 2
    assert last.startswith(f"{tmp_path / 'out'}: 2 drawn, 0 were there; sheet-")
    first, second, font = told.err.splitlines()
    assert first.startswith("drawn 1 of 2, ") and second.startswith("drawn 2 of 2, ")
    assert "the sheet's font lacks 1 letters" in font


def test_run_that_lost_files_or_its_last_batch_ends_with_the_same(draw, tmp_path):
    first = draw("a", "--samples", 3, "--size", "16x16", "--batch-size", 1)
    out = tmp_path / "out"
    before = {path.name: path.read_bytes() for path in out.glob("*.png")}
    index = json.loads((out / "generated.json").read_text())
    index["pictures"] = index["pictures"][:-1]  # as if killed before its last index
    (out / "generated.json").write_text(json.dumps(index))
    (out / first["pictures"][0]["file"]).write_bytes(b"")
    again = draw("a", "--samples", 3, "--size", "16x16")
    assert (again["drawn"], again["found"]) == (2, 1)
    assert {path.name: path.read_bytes() for path in out.glob("*.png")} == before


def test_prompts_of_a_file_have_settings_of_their_own(draw, tmp_path):
    (tmp_path / "more.txt").write_text("\ufeffa cat\n\n  a dog \n")
    rows = [
        {"prompt": "wide", "height": 16, "width": 40, "seed": 9, "samples": 2, "negative": "no"},
        {"prompt": "moving", "seconds": 0.5, "fps": 16, "note": "of somebody else"},
    ]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ("--prompts", tmp_path / "more.txt", "--prompts", tmp_path / "more.jsonl")
    found = draw(*files, "a bird", "--size", "16x16", "--seed", 3)["pictures"]
    told = [(row["prompt"], row["negative"], row["seed"], row["grid"], row.get("frames")) for row in found]
    assert told == [
        ("a bird", "", 3, [2, 2], None), ("a cat", "", 3, [2, 2], None), ("a dog", "", 3, [2, 2], None),
        ("wide", "no", 9, [2, 5], None), ("wide", "no", 10, [2, 5], None), ("moving", "", 3, [2, 2], 8),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((), [5, 5]),  # the largest trained area: 2048 pixels are 45 x 45, and 5 x 5 codes are 40 x 40
        (("--aspect", "16:9"), [4, 7]),
        (("--aspect", "1:2.5", "--area", "32x32"), [6, 2]),
        (("--aspect", "3:1", "--area", "768"), [2, 6]),
        (("--seconds", "0.2", "--fps", "20"), [4, 4]),
    ],
)
def test_aspect_becomes_the_size_that_training_would_have_given_it(draw, shape, grid):
    (row,) = draw("a", *shape)["pictures"]
    assert row["grid"] == grid
    assert "notes" not in row


def test_size_that_was_not_trained_is_drawn_and_noted(draw):
    (row,) = draw("a", "--size", "64x64")["pictures"]
    assert row["notes"] == ["4096 pixels a frame; the model was trained on 512 to 2048"]


def test_names_of_files_are_short_and_safe(draw):
    rows = draw("../../etc/passwd\n\0", "中" * 100, "A" * 300, "--size", "16x16")["pictures"]
    stems = [row["file"].rsplit("-", 2)[0] for row in rows]
    assert stems == ["etc-passwd", "drawing", "a" * 40]


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command that must end with 2 and one line; returns the line."""
    code = main([str(word) for word in words])
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1), error
    return error


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "nothing to draw"),
        (["a", "  "], "prompt 2: is empty"),
        (["a", "--size", "50x48"], "size 50x48: 50 is no multiple of 8 pixels a code; near: 48 or 56"),
        (["a", "--size", "big"], "is HEIGHTxWIDTH"),
        (["a", "--aspect", "4:1"], "aspect 4: "),
        (["a", "--aspect", "wide"], "is WIDTH:HEIGHT"),
        (["a", "--area", "60"], "smaller than the pixels of one code"),
        (["a", "--size", "512x512"], "the model's context holds 512: about 21x21 fit"),
        (["a", "--size", "32x32", "--seconds", "9"], "54 latent frames of 4x4 codes"),
        (["a", "--frames", "6"], "frames 6: is no multiple of 4 frames a code"),
        (["a", "--fps", "8"], "give seconds or frames, too"),
        (["a", "--top-p", "0"], "top_p is 0"),
        (["a", "--temperature", "-1"], "temperature is -1"),
        (["a", "--samples", "0"], "--samples 0"),
        (["a", "--batch-size", "0"], "--batch-size 0"),
        (["a", "--seed", "-1"], "seed is -1"),
        (["a", "--device", "cuda:7"], "device 'cuda:7' cannot be used"),
        (["a", "--dtype", "int4"], "dtype 'int4'"),
        (["--prompts", "/no/such/file.txt"], "cannot be read"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(model, tmp_path, capsys, words, told):
    assert told in refused(capsys, "draw", model, *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": ""}', "line 2: is empty"),
        ('{"text": "a"}', "line 2: has no prompt"),
        ("[1]", "line 2: has no prompt"),
        ("{", "line 2: not JSON"),
        ('{"prompt": "a", "seed": "x"}', "line 2: seed is 'x'"),
        ('{"prompt": "a", "height": 16}', "line 2: height and width"),
        ('{"prompt": "a", "height": 16, "width": 17}', "line 2: size 16x17"),
    ],
)
def test_wrong_line_of_prompts_is_named(model, tmp_path, capsys, line, told):
    (tmp_path / "p.jsonl").write_text(f'{{"prompt": "fine"}}\n{line}\n')
    assert told in refused(capsys, "draw", model, "--prompts", tmp_path / "p.jsonl", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"vocabulary_fingerprint": "0" * 64}, "trained with vocabulary 0000000000000000"),
        ({"vision_fingerprint": "0" * 64}, "made by the vision tokenizer 0000000000000000"),
        ({"vision": None}, "trained without pictures: it neither draws nor sees"),
        ({"vision": {"name": "/no/such/tokenizer"}}, "/no/such/tokenizer"),
        ({"vocabulary": None}, "names no vocabulary"),
    ],
)
def test_model_that_does_not_fit_its_tokenizers_is_refused(tmp_path, capsys, about, told):
    folder = random_export(tmp_path / "model", **about)
    assert told in refused(capsys, "draw", folder, "a", "--out", tmp_path / "out")


def test_model_with_the_fingerprints_of_its_tokenizers_draws(tmp_path):
    fingerprint = load_vision_tokenizer("scenes").fingerprint
    folder = random_export(tmp_path / "m", vision_fingerprint=fingerprint, vocabulary_fingerprint=V.fingerprint)
    (drawn,) = open_studio(folder).draw("a", Shape(size=(16, 16)))
    assert drawn.frames.shape == (1, 16, 16, 3)


def test_folder_without_a_model_is_refused(tmp_path, capsys):
    assert "no exported model is there" in refused(capsys, "draw", tmp_path / "nowhere", "a")
    (tmp_path / "run" / "step-00000010").mkdir(parents=True)
    (tmp_path / "run" / "step-00000010" / "x").write_text("")
    assert "training has not come to its end" in refused(capsys, "draw", tmp_path / "run", "a")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokenmill.json").write_text("{")
    assert "not JSON" in refused(capsys, "draw", tmp_path / "bad", "a")


def test_prompt_in_a_script_that_the_vocabulary_lacks_is_refused_and_a_lost_letter_noted(tmp_path, capsys):
    words = {word: number for number, word in enumerate(["[UNK]", "a", "red", "circle", "1", "2", "*"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[UNK]"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    spec = {"name": "huggingface", "path": str(tmp_path / "tokenizer.json"), "codebook_size": 2048}
    folder, out = random_export(tmp_path / "model", build_vocabulary(spec), areas=None), tmp_path / "out"
    told = refused(capsys, "draw", folder, "赤い円い", "--out", out)
    assert "knows 0 of the 4 letters of prompt 1" in told
    assert "the negative of prompt 1" in refused(capsys, "draw", folder, "a", "--negative", "円", "--out", out)
    assert main(["draw", str(folder), "a red circle 円", "--size", "16x16", "--out", str(out)]) == 0
    assert "the vocabulary knows 10 of the 11 letters of prompt 1" in capsys.readouterr().err
    (png,) = out.glob("a-red*.png")
    assert read_about(png.read_bytes())["notes"] == ["the vocabulary knows 10 of the 11 letters of prompt 1"]


def test_damaged_index_is_refused_and_nothing_is_lost(draw, model, tmp_path, capsys):
    draw("a", "--size", "16x16")
    index = tmp_path / "out" / "generated.json"
    index.write_text(index.read_text()[:100])
    assert main(["draw", str(model), "a", "--out", str(tmp_path / "out")]) == 1
    assert "is no index of drawings" in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("a-*.png"))) == 1


def test_model_and_folder_of_a_store_draw_the_same(draw, model, tmp_path):
    from tokenmill.manifests.storage import open_store

    store = open_store("memory://draw-test")
    for path in (model / "export").iterdir():
        store.put(f"run/export/{path.name}", path.read_bytes())
    here = draw("a", "--size", "16x16")["pictures"][0]
    studio = open_studio("memory://draw-test/run")
    (drawn,) = studio.draw("a", Shape(size=(16, 16)), out="memory://draw-test/out")
    assert drawn.data() != b""
    assert drawn.ids.tolist() == studio.folder(tmp_path / "out").ids(here["file"]).tolist()
    assert store.exists(f"out/{studio.file_of(drawn, 'memory://draw-test/out').rsplit('/', 1)[-1]}")


def test_python_draws_what_the_command_draws(draw, model, tmp_path):
    rows = draw("a", "b", "--samples", 2, "--size", "16x16")["pictures"]
    drawn = open_studio(model).draw(["a", "b"], Shape(size=(16, 16)), samples=2)
    assert [one.about["seed"] for one in drawn] == [0, 1, 0, 1]
    for row, one in zip(rows, drawn, strict=True):
        assert one.data() == (tmp_path / "out" / row["file"]).read_bytes()
        one.save(tmp_path / "saved.png")
        assert (tmp_path / "saved.png").read_bytes() == one.data()
        assert len(parse_pictures(one.ids, V)) == 1
    with pytest.raises(RecipeError, match="says it all"):
        Shape(size=(16, 16), aspect=2.0)
    assert AREAS["image"][1] == open_studio(model).model.area("image").max_area
