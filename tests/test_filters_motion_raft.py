"""RAFT on weights drawn at random: files, padding, batches, devices. How right real weights are is not told here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.moving import clip_of, pan, photograph, window
from torchvision.models import get_model, get_model_weights

from tokenmill.errors import RecipeError, RunError
from tokenmill.filters.motion_figures import COLUMNS
from tokenmill.filters.scorer import build_scorer, identity_settings, is_prepared

SMALL = {"flow": "raft_small", "short_side_px": 64, "num_updates": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return get_model("raft_small", weights=None).eval()


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "raft.safetensors"
    save_file(network.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def clips():
    frames = pan("coffee", 0.1, num_frames=5).frames
    small = np.stack([window(photograph("china"), (40 + 3 * number, 40), (50, 70)) for number in range(3)])
    return [clip_of(frames), clip_of(small), clip_of(frames[:1])]


def raft(weights, **settings):
    return build_scorer("motion", SMALL | {"weights": weights} | settings)


def test_raft_scores_what_it_prepared_with_a_clip_alone_or_in_company(weights, clips):
    scorer = raft(weights, pairs_at_once=3)
    assert is_prepared(scorer) and not is_prepared(build_scorer("motion"))
    prepared = scorer.prepare(clips)
    assert [one.frames.shape for one in prepared] == [(5, 64, 114, 3), (3, 70, 50, 3), (1, 64, 114, 3)]
    together = scorer.score(clips)
    assert together == scorer.score_prepared(prepared)
    assert list(together) == list(COLUMNS) == list(scorer.columns)
    for number, clip in enumerate(clips):
        assert [values[0] for values in scorer.score([clip]).values()] == [v[number] for v in together.values()]
    assert together["motion"][2] is None and all(np.isfinite(together["motion"][:2]))


def test_raft_counts_no_padding(weights, network, clips):
    """70 x 50 px become 128 x 128 by repeated borders, whose flow is left out."""
    frames = clips[1].frames
    found = raft(weights).score([clips[1]])["motion"][0]
    padded = np.pad(frames, ((0, 0), (29, 29), (39, 39), (0, 0)), mode="edge")
    levels = torch.from_numpy(padded).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        flow = network(levels[:-1], levels[1:], num_flow_updates=2)[-1].numpy()[:, :, 29:99, 39:89]
    assert found == pytest.approx(np.linalg.norm(flow, axis=1).mean() / 50, rel=1e-4)


def test_raft_pairs_at_once_hardly_move_values(weights, clips):
    values = [raft(weights, pairs_at_once=at_once).score(clips[:1])["motion"][0] for at_once in (1, 2, 8)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (129, 127)])
def test_raft_takes_frames_of_any_size(weights, size):
    noise = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    assert all(np.isfinite(value) for (value,) in raft(weights).score([clip_of(noise)]).values())


def test_raft_weights_are_known_by_their_content(weights, network, clips, tmp_path):
    moved = tmp_path / "elsewhere.safetensors"
    save_file(network.state_dict(), moved)
    scorer = raft(weights)
    assert raft(str(moved), device="auto").fingerprint == scorer.fingerprint
    assert raft(weights, num_updates=3).fingerprint != scorer.fingerprint
    settings = SMALL | {"weights": weights}
    assert identity_settings(scorer, settings) == {"flow": "raft_small", "short_side_px": 64, "num_updates": 2}
    pickled = tmp_path / "raft.pth"
    torch.save(network.state_dict(), pickled)
    assert raft(str(pickled)).fingerprint != scorer.fingerprint
    assert raft(str(pickled)).score(clips[1:2]) == scorer.score(clips[1:2])


def test_raft_weights_of_torchvision_are_found_in_its_cache(weights, network, clips, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = get_model_weights("raft_small").DEFAULT.url.rpartition("/")[2]
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(network.state_dict(), tmp_path / "hub" / "checkpoints" / name)
    expected = raft(weights).score(clips[1:2])
    assert raft("DEFAULT").score(clips[1:2]) == raft("C_T_V2").score(clips[1:2]) == expected


def test_raft_weights_that_are_none_are_refused_by_name(weights, clips, tmp_path):
    with pytest.raises(RecipeError, match=r"scorer 'motion': weights: no file /none/raft\.pth"):
        raft("/none/raft.pth").fingerprint  # noqa: B018
    with pytest.raises(RecipeError, match="torchvision knows no 'SINTEL' of raft_small: C_T_V1, C_T_V2"):
        raft("SINTEL").fingerprint  # noqa: B018
    with pytest.raises(RunError, match="not the weights of raft_large"):
        raft(weights, flow="raft_large").score(clips[1:2])
    evil = tmp_path / "evil.pth"
    torch.save({"a": print}, evil)
    with pytest.raises(RunError, match=r"evil\.pth: cannot be read as weights"):
        raft(str(evil)).score(clips[1:2])


def test_raft_that_is_misspelt_in_a_recipe_says_what_is_allowed():
    with pytest.raises(RecipeError, match="unknown setting 'preset' for flow 'raft_small'; allowed: device, flow"):
        build_scorer("motion", {"flow": "raft_small", "preset": "fast"})
    with pytest.raises(RecipeError, match=r"flow: .*found 'farneback'"):
        build_scorer("motion", {"flow": "farneback"})
