"""What sequence parallelism and FlexAttention are made of, on one rank: parts of packs, blocks of masks, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask

from tokenmill.errors import RecipeError
from tokenmill.settings_train import TrainSettings
from tokenmill.tokenize.documents import Assembled
from tokenmill.train.attention import Documents, Kernel, check_kernel, packed_attention
from tokenmill.train.job import TrainJob
from tokenmill.train.launch import launch
from tokenmill.train.packs import NO_LABEL, build_pack
from tokenmill.train.sequence_checks import check_heads
from tokenmill.train.sequence_parallel import part_of
from tokenmill.train.world import SequenceGroup

PAD = 7


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("context", [13, 16])
def test_parts_of_all_ranks_are_the_pack_and_padding_that_weighs_nothing(ranks: int, context: int) -> None:
    documents = [Assembled(np.arange(n, dtype=np.int32) + n, np.ones(n, np.float32)) for n in (5, 1, 6)]
    pack = build_pack(documents, context, PAD)

    parts = [part_of(pack, SequenceGroup(rank=rank, size=ranks), PAD) for rank in range(ranks)]

    assert len({len(part.input_ids) for part in parts}) == 1
    ids, labels, weights, positions = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("input_ids", "labels", "loss_weight", "position_ids")
    )
    assert np.array_equal(ids[:context], pack.input_ids) and (ids[context:] == PAD).all()
    assert np.array_equal(labels[:context], pack.labels) and (labels[context:] == NO_LABEL).all()
    assert np.array_equal(weights[:context], pack.loss_weight) and not weights[context:].any()
    missing = -context % ranks
    assert np.array_equal(positions, np.r_[pack.position_ids, np.arange(missing)])
    borders = [*pack.cu_seqlens, *([context + missing] if missing else [])]
    assert all(part.cu_seqlens.tolist() == borders for part in parts)
    assert all((part.num_tokens, part.squares) == (pack.num_tokens, pack.squares) for part in parts)


@pytest.mark.parametrize("borders", [[0, 300], [0, 128, 256], [0, 1, 127, 129, 300, 301, 700], [0, 640, 650, 1000]])
@torch.no_grad()
def test_flex_attention_equals_attention_by_document(borders: list[int]) -> None:
    generator = torch.Generator().manual_seed(len(borders))
    query = torch.randn(1, 4, borders[-1], 16, generator=generator)
    key, value = torch.randn(2, 1, 2, borders[-1], 16, generator=generator)
    documents = Documents.at(borders)

    flex, _ = packed_attention(nn.Module(), query, key, value, None, documents=documents, kernel="flex")
    sdpa, _ = packed_attention(nn.Module(), query, key, value, None, documents=documents)

    assert (flex - sdpa).abs().max() <= 1e-5


@pytest.mark.parametrize("seed", range(8))
def test_blocks_of_documents_are_those_that_torch_finds_by_looking_at_every_pair(seed: int) -> None:
    rng = np.random.default_rng(seed)
    borders = [0, *np.cumsum(rng.choice([1, 5, 64, 128, 129, 300], 6)).tolist()]
    document = torch.from_numpy(np.repeat(np.arange(6), np.diff(borders)))

    def sees(_b: torch.Tensor, _h: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (document[query] == document[key]) & (query >= key)

    ours = Documents.at(borders).block_mask
    theirs = create_block_mask(sees, None, None, borders[-1], borders[-1], device="cpu")

    assert torch.equal(ours.to_dense(), theirs.to_dense())
    wholly, expected = ours.full_kv_num_blocks, theirs.full_kv_num_blocks
    assert wholly is not None and expected is not None and torch.equal(wholly, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["varlen", "flex"])
def test_kernels_on_cuda_have_the_outputs_and_gradients_of_attention_by_document(kernel: Kernel) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = ((1, 4, 700, 64), (1, 2, 700, 64), (1, 2, 700, 64))
    given = [torch.randn(shape, generator=generator, device="cuda").bfloat16() for shape in shapes]
    documents = Documents.at([0, 1, 127, 129, 300, 301, 700], "cuda")

    def outputs(kernel: Kernel, dtype: torch.dtype) -> list[torch.Tensor]:
        query, key, value = (tensor.to(dtype).requires_grad_() for tensor in given)
        attended, _ = packed_attention(nn.Module(), query, key, value, None, documents=documents, kernel=kernel)
        gradients = torch.autograd.grad(attended.float().square().sum(), (query, key, value))
        return [attended.float(), *(gradient.float() for gradient in gradients)]

    for ours, theirs in zip(outputs(kernel, torch.bfloat16), outputs("sdpa", torch.float32), strict=True):
        assert (ours - theirs).abs().max() <= 0.03 * theirs.abs().max()


def test_kernels_that_cannot_train_on_the_device_that_was_found_are_refused_by_name() -> None:
    check_kernel("auto", torch.device("cpu"))
    check_kernel("flex", torch.device("cuda"))
    for kernel in ("varlen", "flex"):
        with pytest.raises(RecipeError, match=rf"train\.attention: {kernel} trains on CUDA devices alone"):
            check_kernel(kernel, torch.device("cpu"))


@pytest.mark.parametrize(
    ("said", "told"),
    [({"ranks": 3, "sequence_parallel": 2}, "groups of 2 ranks do not make up 3 ranks"),
     ({"ranks": 4, "sequence_parallel": 4}, "4 ranks cannot share 6 heads"),
     ({"sequence_parallel": 0}, "greater than or equal to 1"),
     ({"attention": "flex", "device": "cpu"}, "flex trains on CUDA devices alone, found device cpu"),
     ({"attention": "varlen", "device": "cuda"}, "varlen takes 16-bit numbers alone, found precision fp32")],
)  # fmt: skip
def test_recipe_with_what_cannot_be_run_together_is_refused(said: dict[str, int | str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TrainSettings.model_validate(said)


def test_heads_of_a_model_that_ranks_cannot_share_are_refused_with_both_numbers() -> None:
    check_heads(4, 32)
    with pytest.raises(RecipeError, match="3 ranks cannot share the 32 attention heads"):
        check_heads(3, 32)


def test_launch_on_too_few_machines_for_a_group_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainSettings.model_validate({"ranks": 2, "sequence_parallel": 4, "model": {"heads": 8}})
    monkeypatch.setenv("NNODES", "1")

    with pytest.raises(RecipeError, match=r"groups of 4 ranks do not make up 2 ranks; set train\.ranks"):
        launch(TrainJob(root=str(tmp_path), plan="plans/none", settings=settings))
