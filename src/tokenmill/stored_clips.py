"""Clips whose codes are stored already, in a token archive or beside an mp4 that was drawn: never encoded again.

Encoding a decoded clip once more keeps few of its codes, and what is lost shows as a jump where the extension begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tokenmill.errors import RecipeError, RunError
from tokenmill.generate.clip_to_extend import GivenClip
from tokenmill.generate.drawn_folder import INDEX, DrawnFolder
from tokenmill.generate.opened_model import OpenedModel
from tokenmill.generate.pictures import parse_pictures
from tokenmill.inspection import place_of
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.token_archive import Fault, open_token_archive
from tokenmill.tokenize.segments import VisionSegment

_NOTE = "its stored codes, not encoded again"


def archived_clip(place: str, key: str, model: OpenedModel, storage: Mapping[str, Any]) -> GivenClip:
    """Take a clip's codes from the sample of a token archive.

    Raises:
        RecipeError: the sample is not one clip, or its codes are of another vision tokenizer than the model's.
        ManifestError: there is no such archive or key. RunError: the sample is damaged.
    """
    archive = open_token_archive(*place_of(place, storage))
    (sample,) = archive.samples(key)
    if isinstance(sample, Fault):
        raise RunError(f"{archive.name}: sample {key!r}: {sample.what}")
    clips = [one for one in sample.segments if isinstance(one, VisionSegment) and one.fps is not None]
    if len(clips) != 1:
        raise RecipeError(f"{archive.name}: sample {key!r} has {len(clips)} clips; has to have one")
    made_by = None if archive.folder is None else archive.folder.config.fingerprints.get("vision")
    if made_by not in (None, model.vision.fingerprint):
        told = (
            f"its codes are of the vision tokenizer {str(made_by)[:16]}, the model's is {model.vision.fingerprint[:16]}"
        )
        raise RecipeError(f"{archive.name}: {told}")
    (clip,) = clips
    codes = sample.codes[clip.offset : clip.offset + clip.num_codes].reshape(clip.t, clip.h, clip.w)
    assert clip.fps is not None
    return GivenClip(name=key, codes=codes.astype(np.uint32), fps=clip.fps, notes=(_NOTE,))


def drawn_clip(place: str, model: OpenedModel, storage: Mapping[str, Any]) -> GivenClip | None:
    """Take a clip's codes from the folder that it was drawn into, if it was, with this model's vision tokenizer."""
    folder_place, _, name = place.rpartition("/")
    store = open_store(folder_place or ("/" if place.startswith("/") else "."), storage)
    if not name.endswith(".mp4") or not store.exists(INDEX):
        return None
    folder = DrawnFolder(store)
    row = next((row for row in folder.rows.values() if row["file"] == name), None)
    if (
        row is None
        or row["vision"] != model.vision.fingerprint
        or row["vocabulary"] != model.model.vocabulary.fingerprint
    ):
        return None
    (clip,) = parse_pictures(folder.ids(name), model.model.vocabulary)
    assert clip.fps is not None
    return GivenClip(name=name, codes=clip.codes_thw, fps=clip.fps, notes=(_NOTE,))
