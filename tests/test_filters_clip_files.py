"""What is wrong with a model file or a setting of a CLIP scorer is an error that names it, never a bad sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests import tiny_clip

from tokenmill.errors import RecipeError, RunError
from tokenmill.filters.picture import Picture
from tokenmill.filters.scorer import build_scorer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_clip.write_folder(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def head(folder):
    return tiny_clip.linear_head(folder / "head.pth")


@pytest.fixture
def pictures():
    return [Picture.of(np.full((40, 50, 3), level, np.uint8), caption="grey") for level in (3, 200)]


def _no_file(folder, head, tmp_path):
    return "clip_embedding", {"model": str(folder), "pretrained": str(tmp_path / "gone.pt")}, RecipeError, r"gone\.pt"


def _no_folder(folder, head, tmp_path):
    return "clip_embedding", {"model": str(tmp_path / "gone")}, RecipeError, "gone: no open_clip_config.json there"


def _no_weights(folder, head, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    return "aesthetic", {"model": str(tmp_path / "bare"), "head": str(head)}, RecipeError, "bare: no weights beside"


def _no_json(folder, head, tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{")
    return "clip_embedding", {"model": str(tmp_path)}, RecipeError, r"open_clip_config\.json: not JSON"


def _no_model(folder, head, tmp_path):
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"width": 3}}')
    return "clip_embedding", {"model": str(tmp_path)}, RecipeError, r"open_clip_config\.json: describes no model"


def _unknown_name(folder, head, tmp_path):
    return "clip_embedding", {"model": "ViT-L-15"}, RecipeError, "'ViT-L-15': neither a folder nor a model .*ViT-L-14"


def _unknown_tag(folder, head, tmp_path):
    settings = {"model": "ViT-L-14", "pretrained": "laion9"}
    return "clip_similarity", settings, RecipeError, "'laion9' is neither a file nor a tag; tags: openai"


def _cut_off(folder, head, tmp_path):
    data = (folder / "open_clip_model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    settings = {"model": str(folder), "pretrained": str(tmp_path / "cut.safetensors")}
    return "clip_embedding", settings, RecipeError, r"cut\.safetensors: not a whole safetensors file"


def _cut_off_pt(folder, head, tmp_path):
    (tmp_path / "cut.pth").write_bytes(head.read_bytes()[:700])
    return "aesthetic", {"model": str(folder), "head": str(tmp_path / "cut.pth")}, RunError, r"cut\.pth: cannot be read"


def _pickle(folder, head, tmp_path):
    torch.save(torch.nn.Linear(16, 1), tmp_path / "whole.pth")
    return "aesthetic", {"model": str(folder), "head": str(tmp_path / "whole.pth")}, RunError, r"whole\.pth: cannot be"


def _other_head(folder, head, tmp_path):
    path = tiny_clip.linear_head(tmp_path / "large.pth", dimension=768)
    says = r"large\.pth: a head of 768×1; the embeddings have 16"
    return "aesthetic", {"model": str(folder), "head": str(path)}, RunError, says


def _wide_head(folder, head, tmp_path):
    path = tiny_clip.linear_head(tmp_path / "wide.pth", outputs=3)
    return "aesthetic", {"model": str(folder), "head": str(path)}, RunError, r"wide\.pth: a head with 3 outputs"


def _no_head(folder, head, tmp_path):
    save_file({"conv.weight": torch.zeros(3, 3, 3, 3)}, tmp_path / "conv.safetensors")
    settings = {"model": str(folder), "head": str(tmp_path / "conv.safetensors")}
    return "nsfw", settings, RunError, r"conv\.safetensors: not a head of linear layers; it holds conv\.weight"


def _nan_head(folder, head, tmp_path):
    save_file({"weight": torch.full((1, 16), torch.nan), "bias": torch.zeros(1)}, tmp_path / "nan.safetensors")
    settings = {"model": str(folder), "head": str(tmp_path / "nan.safetensors")}
    return "aesthetic", settings, RunError, r"nan\.safetensors: weight holds NaN"


def _nan_model(folder, head, tmp_path):
    path = tiny_clip.damaged(folder, tmp_path / "nan", lambda state: state["visual.proj"].view(-1)[:1].fill_(torch.nan))
    return "clip_embedding", {"model": str(path)}, RunError, r"safetensors: visual\.proj holds NaN"


def _other_positions(folder, head, tmp_path):
    def change(state):
        state["visual.positional_embedding"] = torch.zeros(26, 32)

    path = tiny_clip.damaged(folder, tmp_path / "larger", change)
    return "clip_embedding", {"model": str(path)}, RunError, "not the weights of .*visual.positional_embedding"


def _lacking(folder, head, tmp_path):
    path = tiny_clip.damaged(folder, tmp_path / "lacking", lambda state: state.pop("text_projection"))
    return "clip_embedding", {"model": str(path)}, RunError, "not the weights of .*text_projection"


def _no_such_hub_file(folder, head, tmp_path):
    return "aesthetic", {"model": str(folder), "head": "hf-hub:owner/repository"}, RecipeError, "names no file"


BAD = [
    _no_file, _no_folder, _no_weights, _no_json, _no_model, _unknown_name, _unknown_tag, _cut_off, _cut_off_pt, _pickle,
    _other_head, _wide_head, _no_head, _nan_head, _nan_model, _other_positions, _lacking, _no_such_hub_file,
]  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_model_file_is_an_error_that_names_it_and_never_a_bad_sample(folder, head, pictures, tmp_path, case):
    name, settings, kind, says = case(folder, head, tmp_path)
    with pytest.raises(kind, match=says):
        scorer = build_scorer(name, settings)
        assert len(scorer.fingerprint) == 64 and scorer.columns
        scorer.score(pictures[:2])


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("aesthetic", {}, "head: "),
        ("aesthetic", {"head": "x", "batch_size": 65}, "less than or equal to 64"),
        ("clip_embedding", {"precision": "int8"}, "'fp32', 'bf16' or 'fp16'"),
        ("clip_embedding", {"device": "tpu"}, "device: "),
        ("nsfw", {"model": "x.onnx", "head": "y"}, "head"),
        ("watermark", {"model": "ViT-L-14", "head": "y", "layout": "NHWC"}, "layout"),
    ],
)
def test_wrong_setting_of_a_clip_scorer_is_named(name, settings, says):
    with pytest.raises(RecipeError, match=says):
        build_scorer(name, settings)
