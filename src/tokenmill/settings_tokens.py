"""What a recipe says of a source of kind `tokens`: shards that somebody tokenized already.

Part of the spine: validated before anything starts.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Extension = Annotated[str, Field(pattern=r"^[a-z0-9_.\-]+$")]  # webdataset reads all of them in lower case
Positive = Annotated[int, Field(ge=1)]


class TokenShards(BaseModel):
    """Token shards of others in WebDataset's layout, or a folder that a tokenize stage wrote."""

    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True)

    kind: Literal["tokens"] = "tokens"
    url: str = Field(description="a folder of .tar files (read where they lie), or of a tokenize stage (used as it is)")
    licence: str = ""
    snapshot: str = Field(default="", description="of a stage's folder with several: the first digits of one")
    codes: tuple[Extension, ...] = Field(
        default=("codes.npy", "npy"), description="members with a picture's or clip's codes: the first that is there"
    )
    text: tuple[Extension, ...] = Field(
        default=("text.npy", "ids.npy"), description="members with text ids: the first that is there"
    )
    grid: str | tuple[Positive, Positive] | tuple[Positive, Positive, Positive] = Field(
        default="shape", description="of codes in one row: a field of the JSON with [h, w] or [t, h, w], or the numbers"
    )
    fps: float | None = Field(default=None, gt=0, description="of clips whose JSON has no fps")
    frames_per_latent: Positive = Field(default=4, description="of clips whose JSON has no seconds")
