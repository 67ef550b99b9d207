"""What the launcher of a tokenizer's training tells its ranks: one small JSON file."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tokenmill.settings_tokenizer import TokenizerTraining


class StorePlace(BaseModel):
    """A store, and how to reach it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    options: dict[str, Any] = Field(default_factory=dict, repr=False)


class TokenizerJob(BaseModel):
    """One tokenizer to train, on any machine that reaches the stores; its list of samples lies in the run's folder."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    root: StorePlace
    places: dict[str, StorePlace] = Field(description="source → where its raw files lie")
    settings: TokenizerTraining
