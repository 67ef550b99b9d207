"""What a recipe may say under `generate.jobs` and `generate.questions`: tables of prompts and questions for a model.

A job is a stage: its units are ranges of the table's rows, and whatever of this decides the result names its folder.
Part of the spine: nothing heavy is imported.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
RowKey = Literal["key", "negative", "samples", "seed", "height", "width", "seconds", "fps"]
ROW_KEYS: tuple[RowKey, ...] = get_args(RowKey)
MOST_SAMPLES = 1000
_ASIDE = {"model", "device", "unit_rows"}  # `model` is told by its fingerprint; sizes of units show in the units


class _ModelJob(BaseModel):
    """What jobs of both kinds say of their model and how it is run."""

    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, protected_namespaces=())

    model: str | None = Field(default=None, description="an exported folder, URL or path; absent: the recipe's run")
    device: str = Field(default="cpu", description="cpu, cuda, cuda:1")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: Positive = Field(default=8, description="drawn or answered at a time")
    unit_rows: Positive = Field(default=16, description="rows of the table in a unit, at most")
    seed: int = Field(default=0, ge=0)


class DrawingJob(_ModelJob):
    """A table of prompts, drawn `samples` times each; in what is marked so a row may say otherwise.

    A job with `seconds` draws clips, any other pictures.
    """

    prompts: str = Field(description="URL or path: JSON lines, Parquet, Arrow, CSV, TSV, or .txt with a prompt a line")
    prompt_field: str = Field(default="prompt", min_length=1, description="the column that holds the prompt")
    row_keys: tuple[RowKey, ...] = Field(
        default=ROW_KEYS, description="columns that replace the job's settings; all others are kept as they are"
    )
    samples: int = Field(default=1, ge=1, le=MOST_SAMPLES, description="of each prompt (row)")
    height: Positive = Field(default=512, description="pixels (row)")
    width: Positive = Field(default=512, description="pixels (row)")
    seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="of a clip (row)")
    fps: float = Field(default=24.0, gt=0, allow_inf_nan=False, description="of a clip (row)")
    negative: str = Field(default="", description="what guidance leads away from (row)")
    top_k: int = Field(default=2048, ge=0, description="0: all codes")
    top_p: float = Field(default=1.0, gt=0, le=1)
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False, description="0: the likeliest")
    guidance: float = Field(default=3.0, ge=0, allow_inf_nan=False, description="1: off, half the work")

    @property
    def identity(self) -> dict[str, Any]:
        """What of this decides about the samples, beside the model and the rows."""
        return self.model_dump(mode="json", exclude=_ASIDE | {"prompts"})


class QuestionJob(_ModelJob):
    """A table of questions about pictures and clips, each answered once in text."""

    questions: str = Field(description="URL or path of a table with question and image or clip")
    question_field: str = Field(default="question", min_length=1)
    media: str | None = Field(default=None, description="folder of the pictures; absent: that of the table")
    system: str = Field(default="", description="what the chat opens with; empty: the template's own sentence (row)")
    frames: Positive = Field(default=8, description="of a clip that are shown, evenly spread")
    max_new: Positive = Field(default=256, description="ids of an answer, at most")
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="0: the likeliest")
    top_k: int = Field(default=0, ge=0, description="0: all ids")

    @property
    def identity(self) -> dict[str, Any]:
        """What of this decides about the answers, beside the model and the rows."""
        return self.model_dump(mode="json", exclude=_ASIDE | {"questions", "media"})
