"""Small files in the formats of the twelve sets that lmms-eval scores, drawn and written by the project itself.

`datasets` takes a folder for a repository of its name, so in a folder where `lmms-lab-encoder/POPE` lies the harness's
own task `pope` runs on it, without a network. Each document says how the harness words it for a chat model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from tokenmill.demo.scenes import render, scene

LETTER = "Answer with the option's letter from the given choices directly."
PHRASE = "\nAnswer the question using a single word or phrase."
SIDE = 32


@dataclass(frozen=True, kw_only=True)
class Document:
    """A row of a set, and what the harness makes of it: `asked` is words and numbers of pictures, in order."""

    row: Mapping[str, Any]
    asked: tuple[str | int, ...]
    right: str


@dataclass(frozen=True, kw_only=True)
class SmallSet:
    """A task of the harness, the repository and part its documents come from, and some of them."""

    task: str
    repository: str
    split: str
    documents: Sequence[Document]
    config: str = "default"
    others: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # configs that it reads as well


@cache
def picture(number: int) -> NDArray[np.uint8]:
    return render(scene(100 + number), SIDE)


def shown(number: int) -> dict[str, Any]:
    """A picture as `datasets` stores it."""
    stream = BytesIO()
    Image.fromarray(picture(number)).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": f"{number}.png"}


def _options(*choices: str) -> dict[str, str]:
    return dict(zip("ABCD", choices, strict=False))


def small_sets() -> list[SmallSet]:
    """Two documents of each set; the same question of two pictures where the answers differ."""
    return [
        _seed(),
        _ocr(),
        _vet(),
        _pope(),
        _vqa(),
        _gqa(),
        _text(),
        _chart(),
        _diagrams(),
        _world(),
        _mmmu(),
        _bench(),
    ]


def _seed() -> SmallSet:
    choices = {"choice_a": "red", "choice_b": "blue", "choice_c": "green", "choice_d": "grey"}
    words = f"Which colour?\nA. red\nB. blue\nC. green\nD. grey\n{LETTER}"
    documents = [
        Document(
            row={"image": [shown(at)], "question": "Which colour?", **choices, "answer": right, "data_type": "image",
                 "question_id": str(at)},
            asked=(at, words), right=right,
        )
        for at, right in ((0, "B"), (1, "D"))
    ]  # fmt: skip
    return SmallSet(task="seedbench", repository="lmms-lab-encoder/SEED-Bench", split="test", documents=documents)


def _ocr() -> SmallSet:
    documents = [
        Document(
            row={"image": shown(at), "question": "What is written?", "answer": [right.upper()], "dataset": "IIIT5K",
                 "question_type": "Regular Text Recognition"},
            asked=(at, "What is written?"), right=right,
        )
        for at, right in ((0, "exit"), (1, "taxi"))
    ]  # fmt: skip
    return SmallSet(task="ocrbench", repository="echo840/OCRBench", split="test", documents=documents)


def _vet() -> SmallSet:
    words = (
        "First please perform reasoning, and think step by step to provide best answer to the following question: \n\n"
    )
    documents = [
        Document(
            row={"image": shown(at), "question": "How many?", "answer": right, "question_id": f"v1_{at}",
                 "capability": "rec"},
            asked=(at, f"{words}How many?"), right=right,
        )
        for at, right in ((0, "two"), (1, "one"))
    ]  # fmt: skip
    return SmallSet(task="mmvet", repository="lmms-lab-encoder/MMVet", split="test", documents=documents)


def _pope() -> SmallSet:
    documents = [
        Document(
            row={"image": shown(at), "question": "Is there a circle?", "answer": right, "question_id": str(at),
                 "category": "random"},
            asked=(at, f"Is there a circle?{PHRASE}"), right=right,
        )
        for at, right in ((0, "yes"), (1, "no"))
    ]  # fmt: skip
    return SmallSet(task="pope", repository="lmms-lab-encoder/POPE", split="test", documents=documents)


def _vqa() -> SmallSet:
    documents = [
        Document(
            row={"image": shown(at), "question": "What shape is it?", "question_id": at, "answers": [
                {"answer": said, "answer_confidence": "yes", "answer_id": number}
                for number, said in enumerate([right] * 9 + ["thing"])]},
            asked=(at, f"What shape is it?{PHRASE}"), right=right,
        )
        for at, right in ((0, "square"), (1, "circle"))
    ]  # fmt: skip
    return SmallSet(task="vqav2_val", repository="lmms-lab-encoder/VQAv2", split="validation", documents=documents)


def _gqa() -> SmallSet:
    documents = [
        Document(
            row={"id": str(at), "imageId": f"n{at}", "question": "Is it left?", "answer": right},
            asked=(at, f"Is it left?{PHRASE}"), right=right,
        )
        for at, right in ((0, "no"), (1, "yes"))
    ]  # fmt: skip
    pictures = [{"id": f"n{at}", "image": shown(at)} for at in (0, 1)]
    return SmallSet(
        task="gqa", repository="lmms-lab-encoder/GQA", split="testdev", documents=documents,
        config="testdev_balanced_instructions", others={"testdev_balanced_images": pictures},
    )  # fmt: skip


def _text() -> SmallSet:
    documents = [
        Document(
            row={"image": shown(at), "question": "what does it say?", "question_id": at, "answers": [right] * 10},
            asked=(at, f"What does it say?{PHRASE}"),
            right=right,
        )
        for at, right in ((0, "stop"), (1, "go"))
    ]
    return SmallSet(task="textvqa_val", repository="lmms-lab-encoder/textvqa", split="validation", documents=documents)


def _chart() -> SmallSet:
    documents = [
        Document(
            row={"image": shown(at), "question": "How high?", "answer": right, "type": kind},
            asked=(at, "How high?\nAnswer the question with a single word."),
            right=right,
        )
        for at, right, kind in ((0, "41", "human_test"), (1, "7.5", "augmented_test"))
    ]
    return SmallSet(task="chartqa", repository="lmms-lab-encoder/ChartQA", split="test", documents=documents)


def _diagrams() -> SmallSet:
    documents = [
        Document(
            row={"image": shown(at), "question": "Which part?", "options": ["root", "leaf", "stem"], "answer": number},
            asked=(at, f"Which part?\nA. root\nB. leaf\nC. stem\n{LETTER}"),
            right="ABC"[int(number)],
        )
        for at, number in ((0, "2"), (1, "0"))
    ]
    return SmallSet(task="ai2d", repository="lmms-lab-encoder/ai2d", split="test", documents=documents)


def _world() -> SmallSet:
    only = "Please answer directly with only the letter of the correct option and nothing else."
    question = f"Where to?\n\nA. Left\nB. Right\n{only}"
    documents = [
        Document(row={"image": shown(at), "question": question, "answer": right}, asked=(at, question), right=right)
        for at, right in ((0, "A"), (1, "B"))
    ]
    return SmallSet(task="realworldqa", repository="lmms-lab-encoder/RealWorldQA", split="test", documents=documents)


def _mmmu() -> SmallSet:
    """One question with two pictures between its words, and an open one."""
    choices = "['the first', 'the second']"
    two = Document(
        row={"id": "validation_Art_1", "question": "Of <image 1> and <image 2>, which is red?", "options": choices,
             "answer": "B", "question_type": "multiple-choice", "image_1": shown(0), "image_2": shown(1)},
        asked=("Of", 0, "and", 1, f", which is red?\nA. the first\nB. the second\n\n{LETTER}"), right="B",
    )  # fmt: skip
    opened = Document(
        row={"id": "validation_Math_2", "question": "<image 1> How many sides?", "options": "[]", "answer": "3",
             "question_type": "open", "image_1": shown(2), "image_2": None},
        asked=(2, f"How many sides?\n\n{PHRASE.strip()}"), right="3",
    )  # fmt: skip
    return SmallSet(task="mmmu_val", repository="lmms-lab-encoder/MMMU", split="validation", documents=[two, opened])


def _bench() -> SmallSet:
    words = f"There are several options:\nA. one\nB. two\nC. six\n{LETTER}"
    documents = [
        Document(
            row={"image": shown(at), "index": at, "question": "How many?", "hint": hint, "answer": right,
                 **_options("one", "two", "six", "nan"), "category": "counting", "L2-category": "perception",
                 "source": "own", "split": "dev"},
            asked=(at, f"{told}How many? {words}"), right=right,
        )
        for at, right, hint, told in ((0, "B", "nan", ""), (1, "A", "Look well.", "Look well. "))
    ]  # fmt: skip
    return SmallSet(
        task="mmbench_en_dev_static",
        repository="lmms-lab-encoder/MMBench",
        split="dev",
        documents=documents,
        config="en",
    )


def write_set(folder: Path, one: SmallSet) -> None:
    """Write a set below `folder` as a repository of `datasets`: Parquet a config, told of in a README."""
    target = folder / one.repository
    target.mkdir(parents=True)
    parts = {one.config: [document.row for document in one.documents], **one.others}
    lines = ["---", "configs:"]
    for config, rows in parts.items():
        _write_rows(target / f"{config}.parquet", rows)
        lines += [f"- config_name: {config}", "  data_files:", f"  - split: {one.split}", f"    path: {config}.parquet"]
    (target / "README.md").write_text("\n".join([*lines, "---", ""]))


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    table = pa.Table.from_pylist([dict(row) for row in rows])
    features = {name: _feature(name, table.schema.field(name).type) for name in table.column_names}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def _feature(name: str, kind: pa.DataType) -> dict[str, Any] | list[Any]:
    if name.startswith("image") and pa.types.is_struct(kind):
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"_type": "List", "feature": _feature(name, kind.value_type)}
    if pa.types.is_struct(kind):
        return {part.name: _feature(part.name, part.type) for part in kind}
    return {"_type": "Value", "dtype": str(kind)}
