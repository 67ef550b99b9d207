"""The chunked loss: value and gradients of the plain one, whatever the chunk, the kernel and the precision."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from tokenmill.errors import RecipeError
from tokenmill.train.loss import LossLinear, chunked_loss, plain_loss
from tokenmill.train.loss_kernels import chunk_kernel, liger_chunk, softmax_chunk

COMPARE_KERNELS = """
import itertools
import torch
from tokenmill.train.loss_kernels import liger_chunk, softmax_chunk
generator = torch.Generator().manual_seed(0)
tolerances = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
sizes = (700, 40_000)  # the kernel takes 32,768 logits at a time
for size, dtype, z_loss, wants_gradient in itertools.product(sizes, tolerances, (0.0, 1e-2), (True, False)):
    ours = (torch.randn(6, size, generator=generator) * 4).to(dtype)
    ours[0, 3] = 80.0
    theirs = ours.clone()
    labels = torch.tensor([3, 4, 5, size - 1, 0, 9])
    a = softmax_chunk(ours, labels, z_loss, wants_gradient)
    b = liger_chunk(theirs, labels, z_loss, wants_gradient)
    assert torch.allclose(a.losses, b.losses, atol=1e-5), (size, dtype, z_loss)
    assert (a.penalties is None) == (b.penalties is None) == (z_loss == 0)
    assert a.penalties is None or torch.allclose(a.penalties, b.penalties, rtol=1e-5)
    if wants_gradient:
        gradient = ours.float() if a.scale is None else ours.float() * a.scale[:, None]
        assert (gradient - theirs.float()).abs().max() <= tolerances[dtype], (size, dtype, z_loss)
print("equal")
"""


@pytest.mark.parametrize("z_loss", [0.0, 0.02])
@pytest.mark.parametrize("chunk", [1, 7, 24, 1000])
def test_chunked_loss_equals_plain_loss_with_gradients(chunk: int, z_loss: float) -> None:
    hidden, matrix, labels, weights = problem(seed=chunk)

    total, losses = chunked_loss(hidden, matrix, labels, weights, chunk, z_loss=z_loss)
    gradients = torch.autograd.grad(total * 0.3, (hidden, matrix))
    expected = plain_loss(hidden, matrix, labels, weights, z_loss)
    wanted = torch.autograd.grad(expected * 0.3, (hidden, matrix))

    assert torch.allclose(total, expected, rtol=1e-5)
    assert torch.allclose((losses * weights).sum(), plain_loss(hidden, matrix, labels, weights), rtol=1e-5)
    assert all((ours - theirs).abs().max() <= 1e-5 for ours, theirs in zip(gradients, wanted, strict=True))


def test_chunked_loss_of_hopeless_and_certain_ids_has_no_infinity() -> None:
    hidden = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).requires_grad_()
    matrix = torch.tensor([[300.0, 0.0], [-300.0, 0.0], [0.0, 40.0]]).requires_grad_()
    labels, weights = torch.tensor([0, 1, 2]), torch.tensor([1.0, 0.5, 2.0])

    total, losses = chunked_loss(hidden, matrix, labels, weights, 2)
    gradients = torch.autograd.grad(total, (hidden, matrix))
    wanted = torch.autograd.grad(plain_loss(hidden, matrix, labels, weights), (hidden, matrix))

    assert losses.tolist() == pytest.approx([0.0, 600.0, 0.0], abs=1e-6)
    assert all(torch.allclose(ours, theirs, atol=1e-6) for ours, theirs in zip(gradients, wanted, strict=True))


def test_chunked_loss_in_bf16_is_as_close_to_fp32_as_the_plain_one() -> None:
    hidden, matrix, labels, weights = problem(seed=1)
    wanted = torch.autograd.grad(plain_loss(hidden, matrix, labels, weights), (hidden, matrix))
    low = [tensor.detach().bfloat16().requires_grad_() for tensor in (hidden, matrix)]

    total, _ = chunked_loss(*low, labels, weights, 24)
    ours = torch.autograd.grad(total, low)
    plain = torch.autograd.grad(plain_loss(*low, labels, weights), low)

    for found, theirs, exact in zip(ours, plain, wanted, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found - exact).norm() <= max(1.2 * (theirs - exact).norm(), 1e-3 * exact.norm())


@pytest.mark.parametrize("frozen", ["hidden", "matrix"])
def test_chunked_loss_gives_the_gradient_that_is_asked_for_alone(frozen: str) -> None:
    hidden, matrix, labels, weights = problem(seed=2)
    asked = matrix if frozen == "hidden" else hidden
    (hidden if frozen == "hidden" else matrix).requires_grad_(False)

    (ours,) = torch.autograd.grad(chunked_loss(hidden, matrix, labels, weights, 24)[0], asked)
    (theirs,) = torch.autograd.grad(plain_loss(hidden, matrix, labels, weights), asked)

    assert (ours - theirs).abs().max() <= 1e-5
    with torch.no_grad():
        assert not chunked_loss(hidden, matrix, labels, weights, 24)[0].requires_grad


def test_chunked_loss_refuses_a_second_backward_pass() -> None:
    hidden, matrix, labels, weights = problem(seed=3)
    total, _ = chunked_loss(hidden, matrix, labels, weights, 24)
    total.backward(retain_graph=True)  # type: ignore[no-untyped-call]

    with pytest.raises(RuntimeError, match="for one backward pass"):
        total.backward()  # type: ignore[no-untyped-call]


def test_loss_never_holds_the_logits_of_a_whole_pack() -> None:
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                Largest.numel = max(Largest.numel, out.numel())
            return out

    layer = LossLinear.around(nn.Linear(4, 5_000, bias=False), chunk=16)
    hidden = torch.randn(512, 4, requires_grad=True)
    with Largest():
        total, _ = layer(hidden, torch.arange(512), torch.ones(512))
        total.backward()

    assert Largest.numel <= 16 * 5_000


def test_loss_with_a_label_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="label 9 is outside a vocabulary of 8"):
        chunked_loss(torch.zeros(2, 4), torch.zeros(8, 4), torch.tensor([1, 9]), torch.ones(2), 16)


def test_kernel_is_ligers_on_cuda_alone_and_only_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr("tokenmill.train.loss_kernels.find_spec", lambda _: object())
    assert chunk_kernel("auto", cpu) is chunk_kernel("chunked", cuda) is softmax_chunk
    assert chunk_kernel("auto", cuda) is chunk_kernel("liger", cuda) is liger_chunk
    with pytest.raises(RecipeError, match="liger runs on CUDA, and the device is cpu"):
        chunk_kernel("liger", cpu)

    monkeypatch.setattr("tokenmill.train.loss_kernels.find_spec", lambda _: None)
    assert chunk_kernel("auto", cuda) is softmax_chunk
    with pytest.raises(RecipeError, match=r'pip install "tokenmill\[liger\]"'):
        chunk_kernel("liger", cuda)


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="liger-kernel is not installed")
def test_ligers_kernel_gives_what_torchs_operations_give() -> None:
    """Triton's interpreter runs the kernel as it is written, without a GPU."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", COMPARE_KERNELS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr[-3000:]


@pytest.mark.gpu
def test_ligers_kernel_on_cuda_gives_the_chunked_loss() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    hidden, matrix, labels, weights = (tensor.cuda() for tensor in problem(seed=4))
    found = []
    for kernel in (softmax_chunk, liger_chunk):
        leaves = [tensor.detach().requires_grad_() for tensor in (hidden, matrix)]
        total, _ = chunked_loss(*leaves, labels, weights, 24, kernel=kernel, z_loss=0.02)
        found.append((total, *torch.autograd.grad(total, leaves)))

    assert all((ours - theirs).abs().max() <= 1e-4 for ours, theirs in zip(*found, strict=True))


def problem(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, output matrix, labels of which a fifth is missing, weights."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(90, 16, generator=generator).requires_grad_()
    matrix = torch.randn(50, 16, generator=generator).requires_grad_()
    labels = torch.randint(0, 50, (90,), generator=generator)
    labels[::5] = -100
    return hidden, matrix, labels, torch.rand(90, generator=generator)
