"""The demo's second source: a folder tree of photographs from installed packages, with their captions beside them.

Files are copied as they are, except one over 1,024 px (the retina), which is scaled down; `captions.jsonl` tells
caption, title, licence and origin of each. Eighteen whole photographs are enough for a demo; no crops are added.
"""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokenmill.demo.photographs import Photograph, photographs
from tokenmill.demo.spoiled import NOT_A_PICTURE, Outcome, Spoiled, bomb_png, cut_off, encoded, resized, screenshot

MAX_SIDE_PX = 1024
_OURS = {"licence": "Apache-2.0", "origin": "tokenmill"}
_SCREEN = (
    "Settings    Account    Help    Sign out",
    "Your order number 48213 has been received.",
    "Please read the following terms with care",
    "before you go on to the next page.",
    "1. Goods are sent within three working days.",
    "2. Costs of the way back are ours to bear.",
    "3. A voucher can be used once and not twice.",
    "4. All prices are given with taxes included.",
    "5. We keep your address for ninety days only.",
    "6. Questions are answered between 9 and 17 h.",
    "Total: 3 items, 129.90, paid by card *4471",
    "Thank you for shopping with us. Print this page.",
    "Next    Back    Cancel    Imprint    Privacy",
)


def write_photographs(folder: Path) -> list[Spoiled]:
    """Write photographs, the spoiled files and `captions.jsonl` into `folder`."""
    rows = _written(folder, photographs())
    spoiled, spoiled_rows = _spoil(folder)
    write_lines(folder / "captions.jsonl", rows + spoiled_rows)
    return spoiled


def write_heldout(folder: Path) -> list[Spoiled]:
    """Write the photographs kept for evaluation, the same files, for recipes to name as a set to keep out."""
    rows = _written(folder, (photograph for photograph in photographs() if photograph.heldout))
    write_lines(folder / "captions.jsonl", rows)
    return []


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write rows as JSON lines, readable as they are (no escapes for other scripts)."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _written(folder: Path, chosen: Iterable[Photograph]) -> list[dict[str, Any]]:
    """Copy photographs into a folder; returns their rows of the sidecar."""
    rows = []
    for photograph in chosen:
        file = f"{photograph.origin.partition(':')[0]}/{photograph.name}{photograph.path.suffix}"
        _copy(photograph.path, folder / file)
        rows.append(_row(file, photograph))
    return rows


def _row(file: str, photograph: Photograph) -> dict[str, Any]:
    row = {"file": file, "caption": photograph.caption, "title": title(photograph)}
    return {**row, "licence": photograph.licence, "origin": photograph.origin, "heldout": photograph.heldout}


def title(photograph: Photograph) -> str:
    """Return the title that the package gives: the first line of scikit-image's docstring, else the file's name."""
    if photograph.function is None:
        return photograph.path.name
    functions = importlib.import_module("skimage.data")
    return (inspect.getdoc(getattr(functions, photograph.function)) or photograph.name).splitlines()[0]


def _copy(source: Path, target: Path) -> None:
    """Copy a picture file unchanged, or scaled down if a side is over `MAX_SIDE_PX`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as picture:
        if max(picture.size) > MAX_SIDE_PX:
            picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
            picture.save(target, quality=92)
            return
    shutil.copyfile(source, target)


def _spoil(folder: Path) -> tuple[list[Spoiled], list[dict[str, Any]]]:
    """Write the spoiled pictures below `folder`/web; return what is wrong with each, and their rows of the sidecar."""
    found = {photograph.name: photograph for photograph in photographs()}
    china, flower = found["china"], found["flower"]
    smaller = encoded(resized(np.asarray(Image.open(flower.path).convert("RGB")), 0.9), "jpg", 70)
    files: tuple[tuple[str, bytes, Outcome, str, str, Photograph | None], ...] = (
        ("huge.png", bomb_png(), "failed", "too_many_pixels", "header claims 60,000 x 60,000 pixels", None),
        ("half.jpg", cut_off(china.path.read_bytes(), 0.5), "failed", "truncated", "JPEG cut off in the middle", china),
        ("page.jpg", NOT_A_PICTURE, "failed", "not_an_image", "text named like a picture", None),
        (
            "screen.png",
            encoded(screenshot(_SCREEN), "png"),
            "dropped",
            "text_coverage",
            "screenshot full of text",
            None,
        ),
        (
            "palace.jpg",
            china.path.read_bytes(),
            "dropped",
            "exact_duplicate",
            "the same file under another name",
            china,
        ),
        ("blossom.jpg", smaller, "dropped", "near_duplicate", "scaled to nine tenths and encoded again", flower),
    )
    spoiled, rows = [], []
    (folder / "web").mkdir(parents=True)
    for name, data, expected, hint, what, original in files:
        file = f"web/{name}"
        (folder / file).write_bytes(data)
        twin = f"scikit-learn/{original.path.name}" if original and expected == "dropped" else None
        spoiled.append(
            Spoiled(source="photos", name=file, what=what, expected=expected, expected_reason_hint=hint, twin=twin)
        )
        rows.append(_row(file, original) if original else {"file": file, "caption": what, **_OURS})
    return spoiled, rows
