"""What reads prompts and goes on gives the hidden states of the model's own forward, whatever is inside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from tokenmill.errors import RecipeError
from tokenmill.generate import llama_decoder
from tokenmill.generate.continuation import Continuation
from tokenmill.generate.llama_weights import is_known

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip
OWN = ["Emu3", "Llama", "Mistral", "Qwen2"]
GENERATOR = np.random.default_rng(0)
READ = [GENERATOR.integers(1, 50, length).astype(np.int32) for length in (3, 9, 6)]
NEXT = [GENERATOR.integers(1, 50, (5, length)) for length in (1, 2, 1, 3)]


def small(name: str, **changes: Any) -> Any:
    """Make a random model whose vectors (norms, biases) are random too."""
    torch.manual_seed(0)
    config = getattr(transformers, "Emu3TextConfig" if name == "Emu3" else f"{name}Config")(**SIZES | changes)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    return model


@torch.inference_mode()
def largest_difference(model: Any, prompts: list[NDArray[np.int32]]) -> float:
    """Continue prompts and compare what is behind each piece with the model's forward over each row alone."""
    stream = Continuation(model, prompts, 10, 0)
    found = [stream.start(), *(stream.feed(torch.from_numpy(ids[: len(prompts)])) for ids in NEXT)]
    differences = []
    for row, prompt in enumerate(prompts):
        ids = torch.from_numpy(np.concatenate([prompt, *(piece[row] for piece in NEXT)]).astype(np.int64))
        expected = model.model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
        ends = len(prompt) - 1 + np.cumsum([0, *(piece.shape[1] for piece in NEXT)])
        differences += [(hidden[row] - expected[end]).abs().max() for hidden, end in zip(found, ends, strict=True)]
    return float(torch.stack(differences).max())


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("prompts", [READ, [READ[1]] * 2, [READ[1], READ[0], READ[1], READ[2], READ[0]]])
def test_own_forward_gives_the_hidden_states_of_the_models(name: str, prompts: list[NDArray[np.int32]]) -> None:
    model = small(name)
    assert is_known(model)
    assert largest_difference(model, prompts) < 1e-5
    assert largest_difference(model.double(), prompts) < 1e-12


def test_own_forward_of_a_wide_model_keeps_its_matrices_apart_and_gives_the_same() -> None:
    model = small("Qwen2", hidden_size=1032, num_attention_heads=4, num_hidden_layers=1)
    assert largest_difference(model.double(), READ) < 1e-11


def test_own_forward_in_half_precision_is_as_close_as_half_precision_is() -> None:
    model = small("Emu3").bfloat16()
    assert largest_difference(model, READ) < 0.1


@torch.inference_mode()
def test_step_that_cuda_runs_is_captured_whole_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = torch.compile(llama_decoder.step, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(llama_decoder, "compiled_step", lambda: captured)
    model = small("Emu3").double()
    ids, padding, rows = torch.from_numpy(np.stack([READ[1]] * 2)).long(), torch.tensor([0, 4]), torch.tensor([1, 0, 1])
    streams = [llama_decoder.LlamaDecoder(model, 3, 40, is_compiled=is_compiled) for is_compiled in (False, True)]
    plain, compiled = (
        [stream.read(ids, padding, rows), *(stream.feed(torch.from_numpy(piece[:3])) for piece in NEXT)]
        for stream in streams
    )
    assert max(float((one - other).abs().max()) for one, other in zip(plain, compiled, strict=True)) < 1e-12


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Qwen3", {}),
        ("Mistral", {"sliding_window": 4}),
        ("Gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}),
        ("Llama", {"hidden_act": "gelu"}),
    ],
)
def test_model_with_something_else_inside_runs_through_transformers(name: str, changes: dict[str, Any]) -> None:
    model = small(name, **changes)
    assert not is_known(model)
    assert largest_difference(model, [READ[1], READ[0], READ[1]]) < 1e-4


def test_prompts_longer_than_the_context_are_refused_with_the_numbers() -> None:
    with pytest.raises(RecipeError, match=r"need 65 ids \(9 and 56\); the model's context holds 64"):
        Continuation(small("Emu3"), READ, 56, 0)
