"""The losses of a tokenizer's training: each against its formula, the balance of gradients, the discriminator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.lpips_weights import alex_linear, alex_weights
from torch.nn import functional

from tokenmill.errors import RecipeError
from tokenmill.settings_tokenizer import AdversarialLoss, CodebookSettings, TokenizerLosses, TokenizerTraining
from tokenmill.train.vision_discriminator import PatchDiscriminator, hinge
from tokenmill.train.vision_model import build_model
from tokenmill.train.vision_objective import Made, Objective, balance
from tokenmill.train.vision_perceptual import load_lpips

CPU = torch.device("cpu")
EMA = CodebookSettings()


@pytest.fixture(scope="module")
def model() -> Any:
    """A tokenizer of 32 channels and 32 codes."""
    shape = {"base_channels": 32, "hidden_size": 32, "codebook_size": 32}
    made = build_model(TokenizerTraining.model_validate({"shape": shape}))
    made.requires_grad_(True)
    with torch.no_grad():
        made.quantize.embedding.weight.normal_(generator=torch.Generator().manual_seed(1))
    return made


def drawn(frames: int = 1, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand((2, frames, 3, side, side), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def generator(
    model: Any, pixels: torch.Tensor, *, codebook: CodebookSettings = EMA, step: int = 0, **losses: Any
) -> Made:
    objective = Objective(TokenizerLosses.model_validate(losses), codebook, device=CPU)
    return objective.generator(model, pixels, step=step, quantized=True)


def test_terms_are_their_formulas_and_the_loss_is_their_sum(model: Any) -> None:
    pixels = drawn()
    made = generator(
        model, pixels, l2=2.0, l1=0.5, commitment=0.3, codebook=CodebookSettings(learning="loss", weight=0.7)
    )
    assert made.codes_N is not None
    chosen = model.quantize.embedding.weight[made.codes_N]
    away = (made.latents_ND - chosen).square().mean() / made.latents_ND.var()
    expected = {
        "l2": 2.0 * functional.mse_loss(made.reconstruction_BTCHW, pixels),
        "l1": 0.5 * (made.reconstruction_BTCHW - pixels).abs().mean(),
        "commitment": 0.3 * away,
        "codebook": 0.7 * away,
    }
    assert set(made.terms) == set(expected)
    for name, value in expected.items():
        assert made.terms[name] == pytest.approx(value.item(), rel=1e-4), name
    assert made.loss.item() == pytest.approx(sum(made.terms.values()), rel=1e-5)


@pytest.mark.parametrize("learning", ["ema", "loss"])
def test_gradient_passes_straight_through_and_reaches_the_codebook_only_by_its_own_loss(
    model: Any, learning: str
) -> None:
    model.zero_grad(set_to_none=True)
    codebook = CodebookSettings.model_validate({"learning": learning})
    generator(model, drawn(), commitment=0.0, codebook=codebook).loss.backward()  # type: ignore[no-untyped-call]
    first, codes = model.encoder.conv_in.weight.grad, model.quantize.embedding.weight.grad
    assert float(first.abs().sum()) > 0
    assert (codes is not None and float(codes.abs().sum()) > 0) == (learning == "loss")


@pytest.mark.parametrize("frames", [1, 4])
def test_perceptual_term_is_the_mean_lpips_of_the_frames(model: Any, frames: int, tmp_path: Path) -> None:
    path = tmp_path / "lpips.safetensors"
    save_file(alex_weights() | alex_linear(), path)
    pixels = drawn(frames)
    made = generator(model, pixels, perceptual={"weight": 0.8, "weights": str(path)})
    each = [load_lpips(path)(made.reconstruction_BTCHW[:, t], pixels[:, t]).mean() for t in range(frames)]
    assert made.terms["perceptual"] == pytest.approx(0.8 * torch.stack(each).mean().item(), rel=1e-4)


def test_adversarial_term_begins_at_its_step_and_leaves_the_discriminator_alone(model: Any) -> None:
    losses = TokenizerLosses(
        adversarial=AdversarialLoss(weight=0.5, adaptive=False, start_step=3, channels=8, layers=2)
    )
    objective, pixels = Objective(losses, EMA, device=CPU), drawn(4)
    before = objective.generator(model, pixels, step=2, quantized=True)
    assert "adversarial" not in before.terms
    assert objective.discriminator(pixels, before, step=2) is None
    made = objective.generator(model, pixels, step=3, quantized=True)
    judge = PatchDiscriminator(channels=8, layers=2)
    judge.load_state_dict(objective.state_dict())
    verdict = judge(made.reconstruction_BTCHW.flatten(0, 1))
    assert made.terms["adversarial"] == pytest.approx(-0.5 * verdict.mean().item(), rel=1e-4)
    made.loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in objective.parameters())
    loss = objective.discriminator(pixels, made, step=3)
    assert loss is not None
    real = judge(pixels.flatten(0, 1))
    expected = ((1 - real).clamp_min(0).mean() + (1 + verdict).clamp_min(0).mean()) / 2
    torch.testing.assert_close(loss, expected)


def test_adaptive_weight_makes_both_gradients_of_the_last_layer_alike(model: Any) -> None:
    adversarial = {"weight": 1.0, "channels": 8, "layers": 2}
    pixels = drawn()
    plain = generator(model, pixels, commitment=0.0, adversarial={**adversarial, "adaptive": False})
    adaptive = generator(model, pixels, commitment=0.0, adversarial=adversarial)
    last = model.decoder.conv_out.weight
    objective = Objective(TokenizerLosses(commitment=0.0), EMA, device=CPU)
    likeness = objective.generator(model, pixels, step=0, quantized=True).loss
    norms = [float(torch.autograd.grad(loss, last, retain_graph=True)[0].norm()) for loss in (likeness, plain.loss)]
    against = torch.autograd.grad(plain.loss - plain.terms["l2"], last, retain_graph=True)[0]
    both = torch.autograd.grad(likeness, last)[0]
    alone = (against - both).norm()
    factor = norms[0] / (float(alone) + 1e-4)
    assert adaptive.terms["adversarial"] == pytest.approx(factor * plain.terms["adversarial"], rel=1e-3)


def test_balance_is_bounded_where_the_discriminator_has_no_gradient() -> None:
    last = torch.ones(3, requires_grad=True)
    assert float(balance((1e6 * last).sum(), (0 * last).sum(), last)) == 1e4


def test_discriminator_learns_to_tell_reconstructions_and_its_state_comes_back(model: Any) -> None:
    losses = TokenizerLosses(adversarial=AdversarialLoss(weight=1.0, channels=8, layers=2))
    objective, pixels = Objective(losses, EMA, device=CPU), drawn()
    made = objective.generator(model, pixels, step=0, quantized=True)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3, betas=(0.5, 0.9))
    found = []
    for _ in range(30):
        loss = objective.discriminator(pixels, made, step=0)
        assert loss is not None
        found.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert found[-1] < 0.5 * found[0]
    again = Objective(losses, EMA, device=CPU)
    again.load_state_dict(objective.state_dict())
    one, other = (o.discriminator(pixels, made, step=0) for o in (objective, again))
    assert one is not None and other is not None and torch.equal(one, other)


def test_discriminators_of_two_ranks_begin_equal_and_see_seventy_pixels() -> None:
    torch.manual_seed(1)
    one = PatchDiscriminator(channels=8, layers=3)
    torch.manual_seed(2)
    other = PatchDiscriminator(channels=8, layers=3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    norms = [module for module in one.modules() if isinstance(module, torch.nn.GroupNorm)]
    reach = 1
    for module in reversed([m for m in one.modules() if isinstance(m, torch.nn.Conv2d)]):
        reach = (reach - 1) * module.stride[0] + module.kernel_size[0]
    assert (reach, len(norms)) == (70, 3)
    assert one(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)


def test_hinge_is_zero_beyond_its_margins() -> None:
    assert float(hinge(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -2.0]))) == 0
    assert float(hinge(torch.tensor([0.0]), torch.tensor([0.5]))) == pytest.approx(1.25)


def test_crops_too_small_for_the_discriminator_say_so(model: Any) -> None:
    with pytest.raises(RecipeError, match=r"adversarial.layers: 24 px a side are needed \(found 16\)"):
        generator(model, drawn(side=16), adversarial={"weight": 1.0, "layers": 3})


def test_lpips_without_its_file_is_an_error_of_the_recipe(tmp_path: Path) -> None:
    losses = TokenizerLosses.model_validate({"perceptual": {"weight": 1.0, "weights": str(tmp_path / "absent.pth")}})
    with pytest.raises(RecipeError, match=r"absent\.pth"):
        Objective(losses, EMA, device=CPU)
