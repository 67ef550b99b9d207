"""A batch of prompts being continued: which decoder reads them, and that equal ones are read once.

The unconditional prompt of guidance is the same for a whole batch, and so are several samples of one prompt: of 8
pictures with guidance 9 prompts are read and not 16, of 8 samples of one prompt 2.

Shape suffixes: B rows, L ids, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenmill.errors import RecipeError
from tokenmill.generate.llama_decoder import LlamaDecoder
from tokenmill.generate.llama_weights import is_known
from tokenmill.generate.model_decoder import ModelDecoder


class Continuation:
    """Prompts that are continued by at most `max_new` ids each; `start` reads them, `feed` goes on."""

    def __init__(self, model: Any, prompts: Sequence[NDArray[np.int32]], max_new: int, pad: int) -> None:
        longest = max(map(len, prompts))
        check_context(model, longest, max_new)
        device = model.lm_head.weight.device
        different = list({prompt.tobytes(): prompt for prompt in prompts}.values())
        numbers = {prompt.tobytes(): number for number, prompt in enumerate(different)}
        self._rows_B = torch.tensor([numbers[prompt.tobytes()] for prompt in prompts], device=device)
        padding = [longest - len(prompt) for prompt in different]
        padded = [np.pad(ids, (more, 0), constant_values=pad) for ids, more in zip(different, padding, strict=True)]
        self._padding = torch.tensor(padding, device=device)
        self._prompts = torch.from_numpy(np.stack(padded).astype(np.int64)).to(device)
        decoder = LlamaDecoder if is_known(model) else ModelDecoder
        self._decoder = decoder(model, len(prompts), longest + max_new)

    def start(self) -> Tensor:
        """Read the prompts and give the hidden state (B, D) behind them."""
        return self._decoder.read(self._prompts, self._padding, self._rows_B)

    def feed(self, ids_BL: Tensor) -> Tensor:
        """Read more ids of every row and give the hidden state (B, D) behind them."""
        return self._decoder.feed(ids_BL)


def check_context(model: Any, num_prompt: int, num_new: int) -> None:
    """Refuse what the model was not made to read; raises RecipeError with the numbers."""
    context = model.config.max_position_embeddings
    if num_prompt + num_new > context:
        raise RecipeError(
            f"prompt and answer need {num_prompt + num_new} ids ({num_prompt} and {num_new}); "
            f"the model's context holds {context}"
        )
