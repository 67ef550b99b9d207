"""From the outputs of a classifier to the probability that is meant."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RunError

Final = Literal["none", "sigmoid", "softmax"]


def chosen_output(output: int | None, num_outputs: int, file: str) -> int:
    """Return the place of the output that is meant; raises RunError naming the file if there is none or no telling."""
    if output is None and num_outputs == 1:
        return 0
    if output is None:
        raise RunError(f"{file}: has {num_outputs} outputs; say which one is meant with the setting `output`")
    if output >= num_outputs:
        raise RunError(f"{file}: has {num_outputs} outputs (from 0); `output` is {output}")
    return output


def probabilities(outputs: NDArray[np.float32], final: Final) -> NDArray[np.float32]:
    """Return (n, outputs) after the last activation."""
    if final == "none":
        return outputs
    wide = outputs.astype(np.float64)
    if final == "sigmoid":
        found = 0.5 * (1 + np.tanh(wide / 2))  # does not overflow
    else:
        powers = np.exp(wide - wide.max(axis=1, keepdims=True))
        found = powers / powers.sum(axis=1, keepdims=True)
    narrow: NDArray[np.float32] = found.astype(np.float32)
    return narrow
