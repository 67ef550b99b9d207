"""Scorers on CLIP embeddings, on a small CLIP that the tests write: against bare torch, batches, sharing, bad files."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import skimage.data
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests import tiny_clip

from tokenmill.errors import RunError
from tokenmill.filters import clip_model
from tokenmill.filters.clip_import import open_clip
from tokenmill.filters.clip_model import ClipModel, shared_model
from tokenmill.filters.clip_source import ClipSource
from tokenmill.filters.framing import Framing
from tokenmill.filters.picture import Picture
from tokenmill.filters.scorer import build_scorer
from tokenmill.manifests.identity import rows_digest
from tokenmill.manifests.stagedir import parse_table, table_bytes
from tokenmill.pipelines.decode_image import open_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_clip.write_folder(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def head(folder):
    return tiny_clip.linear_head(folder / "head.pth")


@pytest.fixture(scope="module")
def pictures():
    """Seventy crops of a photograph, too small for a scaled view; every third without a caption."""
    rng, photo = np.random.default_rng(0), skimage.data.astronaut()
    found = []
    for number in range(70):
        top, left = rng.integers(0, 300, 2)
        height, width = rng.integers(40, 120, 2)
        caption = None if number % 3 == 2 else f"an astronaut, seen from place {number}"
        found.append(Picture.of(photo[top : top + height, left : left + width], caption=caption))
    return found


def column(scorer, pictures):
    """Score in the scorer's batches; returns its one column."""
    (name,) = scorer.columns
    size = scorer.batch_size
    return [v for i in range(0, len(pictures), size) for v in scorer.score(pictures[i : i + size])[name]]


def square(picture):
    return Framing(resize_px=tiny_clip.SIDE_PX, crop_px=tiny_clip.SIDE_PX).frame(picture)


def bare_embedding(pictures, pixels_of=square):
    """What open_clip itself says; given whole pictures, with its own resizing (a level apart here and there)."""
    model = tiny_clip.build()
    transform = open_clip().image_transform(tiny_clip.SIDE_PX, is_train=False)
    with torch.inference_mode():
        pixels = torch.stack([transform(Image.fromarray(pixels_of(picture))) for picture in pictures])
        return torch.nn.functional.normalize(model.encode_image(pixels), dim=-1)


def test_embedding_is_that_of_open_clip(folder, pictures):
    found = np.array(column(build_scorer("clip_embedding", {"model": str(folder)}), pictures[:9]))
    expected = bare_embedding(pictures[:9], Picture.rgb).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)  # half a step of float16, and a level of pixels
    np.testing.assert_allclose(found, bare_embedding(pictures[:9]).numpy(), atol=3e-4)


def test_linear_head_gives_what_torch_gives(folder, head, pictures):
    layer = torch.nn.Linear(tiny_clip.DIMENSION, 1)
    layer.load_state_dict(torch.load(head, weights_only=True))
    with torch.inference_mode():
        expected = layer(bare_embedding(pictures[:9]))[:, 0].numpy()
    scorer = build_scorer("aesthetic", {"model": str(folder), "head": str(head)})
    np.testing.assert_allclose(column(scorer, pictures[:9]), expected, atol=1e-5)


def test_improved_head_gives_what_torch_gives(folder, pictures, tmp_path):
    path, network = tiny_clip.improved_head(tmp_path / "improved.pth")
    with torch.inference_mode():
        expected = network(bare_embedding(pictures[:9]))[:, 0].numpy()
    scorer = build_scorer("aesthetic", {"model": str(folder), "head": str(path)})
    np.testing.assert_allclose(column(scorer, pictures[:9]), expected, atol=1e-5)


def test_head_with_two_outputs_gives_the_probability_of_the_one_that_is_meant(folder, pictures, tmp_path):
    head = tiny_clip.linear_head(tmp_path / "two.pth", outputs=2)
    layer = torch.nn.Linear(tiny_clip.DIMENSION, 2)
    layer.load_state_dict(torch.load(head, weights_only=True))
    with torch.inference_mode():
        expected = layer(bare_embedding(pictures[:9])).softmax(-1).numpy()
    for output in (0, 1):
        scorer = build_scorer("watermark", {"model": str(folder), "head": str(head), "output": output})
        np.testing.assert_allclose(column(scorer, pictures[:9]), expected[:, output], atol=1e-5)
    with pytest.raises(RunError, match=r"two\.pth: has 2 outputs; say which"):
        build_scorer("nsfw", {"model": str(folder), "head": str(head)}).score(pictures[:1])


def test_similarity_is_the_cosine_with_the_caption_and_null_without_one(folder, pictures):
    model, tokens = tiny_clip.build(), open_clip().get_tokenizer("ViT-L-14")
    some = [
        *pictures[:5],
        Picture.of(pictures[0].rgb(), caption=" \n"),
        Picture.of(pictures[0].rgb(), caption="go " * 400),
    ]
    found = column(build_scorer("clip_similarity", {"model": str(folder)}), some)
    told = [place for place, picture in enumerate(some) if picture.caption and picture.caption.strip()]
    assert [place for place, value in enumerate(found) if value is not None] == told
    with torch.inference_mode():
        texts = torch.nn.functional.normalize(model.encode_text(tokens([some[p].caption for p in told])), dim=-1)
    expected = (bare_embedding([some[p] for p in told]) * texts).sum(-1).numpy()
    np.testing.assert_allclose([found[place] for place in told], expected, atol=1e-5)


def test_similarity_of_a_caption_without_spaces_takes_no_quadratic_time(folder, pictures):
    endless = Picture.of(pictures[0].rgb(), caption="x" * 1_000_000)
    scorer = build_scorer("clip_similarity", {"model": str(folder)})
    assert len(scorer.prepare([endless])[0].caption) == 2048
    assert column(scorer, [endless])[0] is not None


@pytest.mark.parametrize("name", ["aesthetic", "clip_similarity", "clip_embedding"])
def test_batch_sizes_move_values_by_less_than_1e_5_and_fingerprints_tell_them_apart(folder, head, pictures, name):
    settings = {"model": str(folder)} | ({"head": str(head)} if name == "aesthetic" else {})
    scorers = [build_scorer(name, settings | {"batch_size": size}) for size in (1, 7, 64)]
    assert len({scorer.fingerprint for scorer in scorers}) == 3
    columns = [column(scorer, pictures) for scorer in scorers]
    gone = [[value is None for value in values] for values in columns]
    assert gone[0] == gone[1] == gone[2]
    numbers = [np.array([value for value in values if value is not None], np.float64) for values in columns]
    tolerance = 1e-5 if name != "clip_embedding" else 2e-4  # which of two neighbours in float16
    assert max(np.abs(numbers[0] - other).max() for other in numbers[1:]) < tolerance


def test_scorers_of_one_pass_embed_each_picture_once(folder, head, pictures, tmp_path):
    here = tiny_clip.write_folder(tmp_path / "own", mean=[0.5, 0.5, 0.5])
    settings = {"model": str(here), "batch_size": 16}
    scorers = [
        build_scorer("aesthetic", {**settings, "head": str(head)}),
        build_scorer("nsfw", {**settings, "head": str(head)}),
        build_scorer("clip_similarity", settings),
        build_scorer("clip_embedding", settings),
    ]
    prepared = [[scorer.prepare([picture])[0] for picture in pictures[:64]] for scorer in scorers]
    assert all(a is b and a is c.picture and a is d for a, b, c, d in zip(*prepared, strict=True))
    for scorer, small in zip(scorers, prepared, strict=True):
        for start in range(0, 64, 16):
            scorer.score_prepared(small[start : start + 16])
    assert shared_model(ClipSource(model=str(here)), "fp32", "auto").num_batches == 4


def test_values_do_not_hang_on_what_was_embedded_before(folder, pictures):
    """Scorers behind other gates leave other batches behind, with the same pictures in them."""
    source = ClipSource(model=str(folder))
    small = build_scorer("clip_embedding", {"model": str(folder)}).prepare(pictures[:32])
    small = pickle.loads(pickle.dumps(small))  # as they come from another process
    alone, busy = ClipModel(source, "fp32", "cpu"), ClipModel(source, "fp32", "cpu")
    for others in (small[:1], small[3:9], small[::-1], small[1:], small * 2):
        busy.embed_pictures(others)
    assert busy.num_batches == 5
    assert busy.embed_pictures(small).tobytes() == alone.embed_pictures(small).tobytes()


def test_embeddings_that_are_kept_are_bounded(folder, pictures, monkeypatch):
    monkeypatch.setattr(clip_model, "_KEPT_ROWS", 8)
    model = ClipModel(ClipSource(model=str(folder)), "fp32", "cpu")
    small = build_scorer("clip_embedding", {"model": str(folder)}).prepare(pictures[:12])
    for start in range(0, 12, 4):
        model.embed_pictures(small[start : start + 4])
    model.embed_pictures(small[8:])
    assert model.num_batches == 3
    model.embed_pictures(small[:4])
    assert model.num_batches == 4


def test_fingerprint_follows_contents_and_not_places(folder, head, tmp_path):
    copy = tiny_clip.write_folder(tmp_path / "copy")
    other = tiny_clip.damaged(folder, tmp_path / "other", lambda state: state["visual.proj"].mul_(1.5))
    squashed = tiny_clip.write_folder(tmp_path / "squashed", resize_mode="squash")
    first = build_scorer("clip_embedding", {"model": str(folder)}).fingerprint
    assert build_scorer("clip_embedding", {"model": str(copy), "device": "cpu"}).fingerprint == first
    changed = [
        build_scorer("clip_embedding", {"model": str(other)}),
        build_scorer("clip_embedding", {"model": str(squashed)}),
        build_scorer("clip_embedding", {"model": str(folder), "precision": "bf16"}),
        build_scorer("clip_similarity", {"model": str(folder)}),
        build_scorer("aesthetic", {"model": str(folder), "head": str(head)}),
        build_scorer("aesthetic", {"model": str(folder), "head": str(tiny_clip.linear_head(tmp_path / "h", 2))}),
    ]
    assert len({first, *(scorer.fingerprint for scorer in changed)}) == 7


@pytest.mark.parametrize("kind", ["safetensors", "pt", "wrapped"])
def test_checkpoint_file_gives_what_the_folder_gives(folder, pictures, tmp_path, kind):
    state = load_file(folder / "open_clip_model.safetensors")
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        wrapped = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}
        torch.save(state if kind == "pt" else wrapped, path)
    scorer = build_scorer("clip_embedding", {"model": str(folder), "pretrained": str(path)})
    assert column(scorer, pictures[:4]) == column(build_scorer("clip_embedding", {"model": str(folder)}), pictures[:4])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near(folder, pictures, precision):
    full = np.array(column(build_scorer("clip_embedding", {"model": str(folder)}), pictures[:4]))
    half = np.array(
        column(build_scorer("clip_embedding", {"model": str(folder), "precision": precision}), pictures[:4])
    )
    assert (full * half).sum(axis=1).min() > 0.999


def test_embeddings_survive_a_table_with_checksums(folder, pictures):
    scorer = build_scorer("clip_embedding", {"model": str(folder)})
    assert scorer.columns == {"clip_embedding": pl.Array(pl.Float16, tiny_clip.DIMENSION)}
    values = [*column(scorer, pictures[:3]), None]
    frame = pl.DataFrame({"clip_embedding": values}, schema=dict(scorer.columns), strict=False)
    back = parse_table(table_bytes(frame, 1))
    assert back.schema == frame.schema and back.equals(frame) and rows_digest(back) == rows_digest(frame)
    assert back["clip_embedding"].drop_nulls().to_numpy().tolist() == values[:3]


def test_network_that_overflows_gives_null_and_no_sample_is_lost(folder, head, pictures, tmp_path):
    """Weights that are numbers, activations that are none: all that half precision can do to a good file."""
    big = tiny_clip.damaged(folder, tmp_path / "big", lambda state: state["visual.proj"].fill_(3e38))
    assert column(build_scorer("aesthetic", {"model": str(big), "head": str(head)}), pictures[:2]) == [None, None]
    embedding = build_scorer("clip_embedding", {"model": str(big)})
    assert column(embedding, pictures[:2]) == [None, None]


def test_columns_and_views_are_known_without_torch(folder, head):
    code = (
        "import sys; from tokenmill.filters.scorer import build_scorer, views_of, PreparedScorer\n"
        f"scorer = build_scorer('clip_embedding', {{'model': {str(folder)!r}}})\n"
        "assert scorer.columns and views_of(scorer) and scorer.fingerprint and isinstance(scorer, PreparedScorer)\n"
        "assert build_scorer('aesthetic', {'head': 'x.pth'}).columns and build_scorer('clip_embedding').columns\n"
        "print(*sorted({'torch', 'open_clip', 'transformers', 'onnxruntime'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_scoring_writes_nothing_to_the_log_and_warns_of_nothing(folder, head):
    code = (
        "import logging, numpy as np; from tokenmill.filters.scorer import build_scorer, Picture\n"
        f"scorer = build_scorer('aesthetic', {{'model': {str(folder)!r}, 'head': {str(head)!r}}})\n"
        "assert scorer.score([Picture.of(np.zeros((9, 9, 3), np.uint8))])['aesthetic'][0] is not None\n"
        "assert logging.getLogger().handlers == [] and logging.getLogger().filters == []"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (3, 40_000), (31, 33)])
def test_picture_of_any_size_is_embedded(folder, size):
    picture = Picture.of(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    (values,) = column(build_scorer("clip_embedding", {"model": str(folder)}), [picture])
    assert np.linalg.norm(values) == pytest.approx(1, abs=1e-2)


def square_of_open_clip(photo, side_px, mode="shortest", interpolation="bicubic"):
    transform = open_clip().image_transform(
        side_px, is_train=False, resize_mode=mode, interpolation=interpolation, mean=(0, 0, 0), std=(1, 1, 1)
    )
    return transform(Image.fromarray(photo)).permute(1, 2, 0).mul(255).round().byte().numpy()


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(200, 451), (512, 255), (64, 64), (20, 25)])
def test_framing_of_a_whole_view_is_the_preprocessing_of_open_clip(mode, interpolation, shape):
    photo = skimage.data.astronaut()[: shape[0], : shape[1]]
    ours = Framing(resize_px=64, crop_px=64, mode=mode, interpolation=interpolation).frame(Picture.of(photo))
    assert np.abs(square_of_open_clip(photo, 64, mode, interpolation).astype(int) - ours).max() <= 1


@pytest.mark.parametrize("size", [(1021, 1533), (1500, 999), (1900, 2843)])
@pytest.mark.parametrize("kind", ["jpeg", "frame"])
def test_framing_of_a_scaled_view_is_close_to_that_of_the_whole_picture(size, kind):
    photo, file = Image.fromarray(skimage.data.astronaut()).resize(size, Image.Resampling.LANCZOS), io.BytesIO()
    photo.save(file, "JPEG", quality=90)
    encoded = open_image(file.getvalue(), max_pixels=10**8)
    whole = encoded("rgb", 1)
    picture, framing = Picture(encoded, *encoded.size) if kind == "jpeg" else Picture.of(whole), Framing()
    assert max(picture.view(framing.view).shape) < max(size)
    error = np.mean((square_of_open_clip(whole, 224).astype(float) - framing.frame(picture)) ** 2)
    assert 10 * np.log10(255**2 / error) > 44  # half a pixel of shift leaves some 35


@pytest.mark.parametrize(
    ("model", "pretrained", "quick_gelu", "mode", "side_px", "dimension"),
    [
        ("ViT-L-14", "", True, "shortest", 224, 768),  # open_clip itself would only warn, and use the other GELU
        ("ViT-L-14", "laion2b_s32b_b82k", False, "shortest", 224, 768),
        ("ViT-L-14-336", "openai", True, "shortest", 336, 768),
        ("ViT-B-16-SigLIP", "webli", False, "squash", 224, 768),
    ],
)
def test_tag_decides_on_activation_and_preprocessing(model, pretrained, quick_gelu, mode, side_px, dimension):
    source = ClipSource(model=model, pretrained=pretrained)
    assert (source.quick_gelu, source.dimension) == (quick_gelu, dimension)
    assert source.framing == Framing(resize_px=side_px, crop_px=side_px, mode=mode)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_what_the_cpu_gives(folder, head, pictures):
    settings = {"model": str(folder), "head": str(head)}
    there, again, here = (
        build_scorer("aesthetic", {**settings, "device": device}) for device in ("cuda", "cuda:0", "cpu")
    )
    np.testing.assert_allclose(column(there, pictures), column(here, pictures), atol=1e-4)
    assert column(there, pictures) == column(again, pictures)
    sizes = [build_scorer("aesthetic", {**settings, "device": "cuda", "batch_size": size}) for size in (1, 7, 64)]
    columns = [column(scorer, pictures) for scorer in sizes]
    assert max(np.abs(np.subtract(columns[0], other)).max() for other in columns[1:]) < 1e-5
