"""The codebook over ranks: two real ranks with half a batch each end with the codebook of one with the whole."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tokenmill.settings_tokenizer import CodebookSettings, TokenizerLosses, TokenizerTraining
from tokenmill.tokenize.nearest import nearest
from tokenmill.train.vision_codebook import Codebook
from tokenmill.train.vision_model import build_model
from tokenmill.train.vision_objective import Objective

RANKS = 2
State = dict[str, torch.Tensor]


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def share(rows: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    return rows.chunk(ranks)[rank]


def learned(rank: int, ranks: int) -> State:
    """Settle, follow and revive for some steps; half of the codes begin far from every latent."""
    codebook = Codebook.of(torch.zeros(64, 8))
    codebook.settle(share(drawn(96, 8, seed=1), rank, ranks), generator=torch.Generator().manual_seed(0), rounds=3)
    codebook.embedding_VD[32:] += 100
    codebook.sums_VD[32:] += 100
    revived = []
    for step in range(12):
        latents = share(drawn(40, 8, seed=step), rank, ranks)
        codebook.follow(latents, nearest(latents, codebook.embedding_VD), decay=0.6)
        if step % 3 == 2:
            generator = torch.Generator().manual_seed(step)
            revived.append(codebook.revive(latents, below=0.1, generator=generator))
    return {
        "embedding": codebook.embedding_VD,
        "uses": codebook.uses_V,
        "sums": codebook.sums_VD,
        "revived": torch.tensor(revived),
    }


def weighed(rank: int, ranks: int) -> State:
    """One step's gradients with commitment, codebook and adaptive adversarial losses, averaged over the ranks."""
    from tokenmill.train.vision_run import average_gradients

    shape = {"base_channels": 32, "hidden_size": 32, "codebook_size": 32}
    model = build_model(TokenizerTraining.model_validate({"shape": shape}))
    model.requires_grad_(True)
    losses = TokenizerLosses.model_validate({"adversarial": {"weight": 0.5, "channels": 8, "layers": 2}})
    objective = Objective(losses, CodebookSettings(learning="loss"), device=torch.device("cpu"))
    pixels = share(drawn(4, 1, 3, 16, 16, seed=3).tanh(), rank, ranks)
    made = objective.generator(model, pixels, step=0, quantized=True)
    made.loss.backward()  # type: ignore[no-untyped-call]
    judged = objective.discriminator(pixels, made, step=0)
    assert judged is not None
    judged.backward()  # type: ignore[no-untyped-call]
    parameters = {name: value for name, value in model.named_parameters() if value.grad is not None}
    parameters |= {f"judge.{index}": value for index, value in enumerate(objective.parameters())}
    average_gradients(parameters.values())
    return {name: value.grad for name, value in parameters.items() if value.grad is not None}


def _rank(work: Callable[[int, int], State], rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    torch.save(work(rank, RANKS), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(work: Callable[[int, int], State], folder: Path) -> list[State]:
    """Do the work on two ranks, forked: each has torch already."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_rank, args=(work, rank, folder)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * RANKS
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_codebook_of_two_ranks_is_that_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    whole = learned(0, 1)
    one, other = on_ranks(learned, tmp_path)
    assert int(whole["revived"].sum()) > 32
    for name, value in whole.items():
        torch.testing.assert_close(one[name], value, rtol=1e-6, atol=1e-6, msg=name)
        assert torch.equal(one[name], other[name]), name


def test_gradients_of_two_ranks_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    whole = weighed(0, 1)
    one, other = on_ranks(weighed, tmp_path)
    for name, value in whole.items():
        torch.testing.assert_close(one[name], value, rtol=2e-3, atol=1e-5, msg=name)
        assert torch.equal(one[name], other[name]), name


def test_more_dead_codes_than_latents_are_all_revived_near_latents_or_used_codes() -> None:
    codebook = Codebook.of(drawn(64, 4, seed=1) + 100)
    codebook.embedding_VD[:2] = torch.tensor([[0.0] * 4, [5.0] * 4])
    codebook.sums_VD.copy_(codebook.embedding_VD)
    latents = torch.cat([0.1 * drawn(5, 4, seed=2), 5 + 0.1 * drawn(5, 4, seed=3)])
    for _ in range(20):
        codebook.follow(latents, nearest(latents, codebook.embedding_VD), decay=0.5)
    found = [codebook.revive(latents, below=0.05, generator=torch.Generator().manual_seed(4)) for _ in range(2)]
    assert found == [62, 0]
    assert float(torch.cdist(codebook.embedding_VD, latents).min(1).values.max()) < 1
    assert len({tuple(code) for code in codebook.embedding_VD.tolist()}) == 64


def test_revival_is_a_function_of_its_generator() -> None:
    def revived(seed: int) -> torch.Tensor:
        codebook = Codebook.of(drawn(8, 4, seed=1))
        codebook.uses_V[3:] = 0
        codebook.revive(drawn(20, 4, seed=2), below=0.05, generator=torch.Generator().manual_seed(seed))
        return codebook.embedding_VD

    assert torch.equal(revived(5), revived(5))
    assert not torch.equal(revived(5), revived(6))


def test_uses_are_counted_where_a_loss_moves_the_codes() -> None:
    codebook = Codebook.of(drawn(4, 2, seed=1))
    before = codebook.embedding_VD.clone()
    for _ in range(60):
        codebook.count(torch.tensor([0, 0, 2]), decay=0.8)
    torch.testing.assert_close(codebook.uses_V, torch.tensor([2.0, 0.0, 1.0, 0.0]), atol=1e-4, rtol=0)
    assert torch.equal(codebook.embedding_VD, before)
