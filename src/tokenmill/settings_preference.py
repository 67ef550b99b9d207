"""What a recipe may say under `train.preference`: how a run learns from pairs of answers (DPO).

Part of the spine, as `settings_train` is: nothing heavy is imported.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class PreferenceSettings(BaseModel):
    """DPO on the plan's preference pairs, and next-token cross-entropy on their chosen answers beside it."""

    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True)

    beta: float = Field(
        default=0.1, gt=0, allow_inf_nan=False, description="how far the model may go from its start: small is far"
    )
    next_token_weight: float = Field(
        default=1.0, ge=0, allow_inf_nan=False,
        description="of the next-token loss on chosen answers and on documents that are no pairs; Emu3 has both losses",
    )  # fmt: skip
