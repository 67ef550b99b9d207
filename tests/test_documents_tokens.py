"""Pages and conversations from raw tars to the loader: ids and loss weights as put together here by hand."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.pages import drawn, encoded_json, page, page_members, said, talk, write_tar

from tokenmill.inspection import inspect_path
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.storage import open_store
from tokenmill.manifests.verify import verify
from tokenmill.manifests.verify_plan import plan_faults
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.checks import check_chain
from tokenmill.pipelines.detokenize import Detokenizer
from tokenmill.pipelines.token_archive import open_token_archive
from tokenmill.recipe import check_recipe
from tokenmill.tokenize.vision import load_vision_tokenizer
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.loader import PlanLoader

V = byte_vocabulary(2048)
CONTEXT = 1500
ONE, HALF, NONE = 1.0, 0.5, 0.0
Piece = tuple[Sequence[int], float]

MMC4 = {
    "text_list": ["A first sentence.", "A second.", "A third."],
    "image_info": [{"image_name": "1.png", "matched_text_index": 2}, {"image_name": "0.png", "matched_text_index": 0}],
}
MANY_TURNS = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And"}, {"type": "image"}]},
        {"role": "user", "content": "Which is larger?"},
        {"role": "assistant", "content": "Neither."},
        {"role": "system", "content": "Now draw."},
        {"role": "user", "content": "Draw the first again."},
        {"role": "assistant", "content": [{"type": "text", "text": "Here:"}, {"type": "image"}]},
    ],
    "images": ["0.png", "1.png", "2.png"],
}
DRAWN = {
    "segments": [
        {"text": "A box, please.", "role": "user"},
        {"image": 0, "role": "assistant"},
        {"text": "The same again.", "role": "user"},
        {"image": 0, "role": "assistant", "learn": False},
        {"text": "Done.", "role": "assistant"},
    ]
}
CAPTIONED = {
    "segments": [
        {"image": 0},
        {"text": "A box.", "role": "caption"},
        {"text": "One box.", "role": "caption", "variant": 1},
    ]
}
TWICE = {"images": ["0.png", None, "0.png"], "texts": [None, "Twice the same.", None]}


def members(key: str, value: dict[str, Any], pictures: Sequence[int | bytes]) -> list[tuple[str, bytes]]:
    shown = [one if isinstance(one, bytes) else drawn(one) for one in pictures]
    return [*((f"{key}.{n}.png", data) for n, data in enumerate(shown)), (f"{key}.json", encoded_json(value))]


def write_documents(folder: Path) -> None:
    broken = drawn(8)[:200]
    write_tar(folder / "00000.tar", [*page_members("page", 0, 3), *members("mmc4", MMC4, [3, 4]),
              *members("twice", TWICE, [5]), *members("hole", page(6), [broken, 7])])  # fmt: skip
    write_tar(folder / "00001.tar", [
        ("talk.0.png", drawn(2)), ("talk.json", encoded_json(talk(2))), *members("many", MANY_TURNS, [0, 1, 0]),
        *members("drawn", DRAWN, [6]), *members("captioned", CAPTIONED, [6]), *members("cut", talk(8), [broken]),
    ])  # fmt: skip


def recipe(folder: Path, root: Path, **changes: Any) -> dict[str, Any]:
    source = {"kind": "webdataset", "modality": "document", "url": str(folder)}
    return {
        "root": str(root),
        "execution": {"executor": "inline", "decode_threads": 2},
        "sources": {"pages": source},
        "filter": {"document": {"scorers": {"document_shape": {}}}},
        "tokenize": {
            "vocabulary": {"name": "bytes", "codebook_size": 2048},
            "vision": {"name": "scenes"},
            "document": {"min_area": 1024, "max_area": 4096, **changes.pop("document", {})},
        },
        "plan": {"context": CONTEXT, **changes},
    }


def chain_of(folder: Path, root: Path, **changes: Any) -> Chain:
    made = check_recipe(recipe(folder, root, **changes), "documents")
    chain = Chain(recipe=made, options=ChainOptions(quiet=True))
    check_chain(chain)
    return chain


@dataclass(frozen=True)
class Done:
    folder: Path
    chain: Chain

    @property
    def archives(self) -> list[Path]:
        return sorted(Path(self.chain.recipe.root).glob("tokenize/pages/*/*.tar"))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("documents")
    write_documents(folder / "data")
    chain = chain_of(folder / "data", folder / "root")
    assert chain.plan.num_packs > 0
    return Done(folder / "data", chain)


def failures(chain: Chain) -> dict[str, str]:
    tables = [s.folder.read_rows(c, ["key", "fail_reason"]) for s in chain.tokenize.values() for c in s.commits]
    return {key: reason for table in tables for key, reason in table.iter_rows() if reason is not None}


@pytest.fixture(scope="module")
def vision() -> Any:
    return load_vision_tokenizer("scenes")


def text(words: str, weight: float = ONE) -> Piece:
    return list(words.encode()), weight


def seen(data: bytes, vision: Any, weight: float = HALF) -> Piece:
    """Put a picture together by hand: SOV, its grid, SOT, rows of codes with EOL, EOF, EOV."""
    pixels = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
    (codes,) = vision.encode_images(pixels[None])
    rows = [one for row in codes for one in (*(int(code) + V.vision_base for code in row), V.eol)]
    return [V.sov, *f"{codes.shape[0]}*{codes.shape[1]}".encode(), V.sot, *rows, V.eof, V.eov], weight


def document(*pieces: Piece) -> tuple[list[int], list[float]]:
    ids = [one for ids, _ in pieces for one in ids]
    return ids, [weight for ids, weight in pieces for _ in ids]


BOS, EOS, END_UNLEARNED = ([V.bos], NONE), ([V.eos], ONE), ([V.eos], NONE)
USER, ASSISTANT = text(" USER: ", NONE), text(". ASSISTANT:", NONE)


def loaded(plan: Plan) -> dict[tuple[str, str, int], tuple[list[int], list[float]]]:
    """Read every pack through the loader: (key, template, start) → ids, and what predicting each weighs."""
    loader = PlanLoader(plan, V, global_packs=1)
    found = {}
    for number in range(plan.num_packs):
        step = loader.step(number)
        (pack,) = step.micro_batches
        assert not step.faults
        start = 0
        for sample in step.samples:
            end = start + sample.length
            ids = pack.input_ids[start:end].tolist()
            assert pack.labels[start : end - 1][pack.loss_weight[start : end - 1] > 0].tolist() == [
                label for label, weight in zip(ids[1:], pack.loss_weight[start : end - 1], strict=True) if weight > 0
            ]
            weights = [0.0, *pack.loss_weight[start : end - 1].tolist()]
            found[sample.key, sample.template, sample.start] = (ids, weights)
            start = end
    return found


def expected(vision: Any) -> dict[tuple[str, str], tuple[list[int], list[float]]]:
    def shown(number: int, weight: float = HALF) -> Piece:
        return seen(drawn(number), vision, weight)

    last = [V.eos], HALF
    helpful = text("You are a helpful assistant.", NONE)
    return {
        ("page", "interleaved"): document(
            BOS, shown(0), text(said(0)), shown(1), text(said(1)), shown(2), text(said(2) + "\nThis was the page."), EOS
        ),
        ("mmc4", "interleaved"): document(
            BOS, shown(3), text("A first sentence.\nA second."), shown(4), text("A third."), EOS
        ),
        ("twice", "interleaved"): document(BOS, shown(5), text("Twice the same."), shown(5), last),
        ("hole", "interleaved"): document(
            BOS, text(said(6)), shown(7), text(said(7) + "\nThis was the page."), EOS
        ),
        # The released format: BOS system USER: {image}{text}. ASSISTANT: answer EOS (EMU3.md §4)
        ("talk", "chat"): document(
            BOS, helpful, USER, shown(2, NONE), text("What is this?", NONE), ASSISTANT, text(said(2)), EOS,
            USER, text("Say it in other words.", NONE), ASSISTANT, text(said(2, 1)), EOS,
        ),
        ("many", "chat"): document(
            BOS, text("Be brief.", NONE), USER, shown(0, NONE), text("And", NONE), shown(1, NONE),
            text("Which is larger?", NONE), ASSISTANT, text("Neither."), EOS,
            USER, text("Now draw.\nDraw the first again.", NONE), ASSISTANT, text("Here:"), shown(0), last,
        ),
        ("drawn", "chat"): document(
            BOS, helpful, USER, text("A box, please.", NONE), ASSISTANT, shown(6), last,
            USER, text("The same again.", NONE), ASSISTANT, shown(6, NONE), text("Done."), EOS,
        ),
    }  # fmt: skip


def test_documents_come_out_of_the_loader_as_put_together_by_hand(done, vision):
    found = loaded(done.chain.plan)
    wanted = expected(vision)
    assert {(key, template) for key, template, _ in found if key != "captioned"} == set(wanted)
    for (key, template), (ids, weights) in wanted.items():
        assert found[key, template, 0] == (ids, weights), key


def test_captioned_picture_draws_from_the_templates_of_images_one_variant_at_a_time(done, vision):
    drawn_6, box, one_box = seen(drawn(6), vision), text("A box."), text("One box.")
    last = [V.eos], HALF
    allowed = [document(BOS, caption, drawn_6, last) for caption in (box, one_box)]
    allowed += [document(BOS, drawn_6, caption, EOS) for caption in (box, one_box)]
    allowed += [document(BOS, drawn_6, last)]
    (found,) = [value for (key, _, _), value in loaded(done.chain.plan).items() if key == "captioned"]
    assert found in allowed


def test_broken_picture_leaves_a_page_and_fails_a_conversation(done):
    assert failures(done.chain) == {"cut": "truncated"}
    told = sum(commit.totals.get("pictures.left_out", 0) for commit in done.chain.tokenize["pages"].commits)
    assert told == 1
    sample = inspect_path(str(done.archives[0]), "hole", done.folder)[0]
    assert sample["left_out"] == {"0": "truncated"}


def test_broken_picture_fails_a_page_if_the_recipe_says_so(done, tmp_path):
    chain = chain_of(done.folder, tmp_path, document={"broken_pictures": "fail", "max_pictures": 2})
    assert chain.tokenize
    assert failures(chain) == {
        "cut": "truncated",
        "hole": "truncated",
        "page": "too_many_pictures",
        "many": "too_many_pictures",
    }


def test_picture_that_is_shown_twice_is_stored_once(done):
    sample = inspect_path(str(done.archives[0]), "twice", done.folder)[0]
    assert sample["num_codes"] == 64
    assert [one["offset"] for one in sample["segments"] if "vision" in one] == [0, 0]


def test_archives_verify_and_stock_webdataset_reads_them(done):
    import webdataset

    assert not verify(open_store(done.chain.recipe.root), "", deep=True)
    rows = list(webdataset.WebDataset([str(done.archives[0])], shardshuffle=False).decode())
    by_key = {row["__key__"]: row for row in rows}
    assert sorted(by_key) == ["hole", "mmc4", "page", "twice"]
    assert by_key["page"]["codes.npy"].shape == (3 * 64,)
    assert [segment.get("role", "picture") for segment in by_key["mmc4"]["json"]["segments"]] == [
        "picture", "body", "picture", "body"
    ]  # fmt: skip


def test_inspect_shows_the_segments_with_their_words_and_pictures(done, tmp_path):
    found, told = inspect_path(str(done.archives[1]), "many", tmp_path)
    said_ = [segment.get("says", "picture") for segment in found["segments"]]
    assert said_ == ["Be brief.", "picture", "And", "picture", "Which is larger?", "Neither.", "Now draw.",
                     "Draw the first again.", "Here:", "picture"]  # fmt: skip
    assert "Which is larger?" in told
    assert all(Path(one["picture"]).exists() for one in found["segments"] if "vision" in one)


def test_detokenize_writes_pictures_in_their_places_and_words_that_are_no_markup(done, tmp_path):
    archive = open_token_archive(open_store(str(done.archives[1].parent)), done.archives[1].name)
    files = Detokenizer(archive=archive, to=open_store(str(tmp_path))).write("many").files
    assert [row["file"] for row in files] == ["many.0.png", "many.1.png", "many.2.png", "many.txt", "many.html"]
    lines = (tmp_path / "many.txt").read_text().splitlines()
    assert lines[:4] == ["system: Be brief.", "[many.0.png]", "user: And", "[many.1.png]"]
    shown = (tmp_path / "many.html").read_text()
    assert shown.index("many.0.png") < shown.index("And") < shown.index("many.1.png") < shown.index("larger?")


def test_long_page_becomes_parts_that_cut_no_picture_and_are_the_page_joined(done, vision, tmp_path):
    root = Path(done.chain.recipe.root)
    context = 128
    refused = chain_of(done.folder, root, context=context).plan
    assert {key for key, _, _ in loaded(refused)} == {"captioned"}
    assert refused.description["counts"]["dropped"]["too_long"] == 7
    plan = chain_of(done.folder, root, context=context, split_long_pages=True).plan
    assert not plan_faults(plan)
    found = loaded(plan)
    for (key, template), (ids, weights) in expected(vision).items():
        parts = sorted((start, value) for (k, t, start), value in found.items() if (k, t) == (key, template))
        assert bool(parts) == (template == "interleaved"), key
        if not parts:
            continue
        assert [one for _, (part, _) in parts for one in part] == ids
        for start, (part, part_weights) in parts:
            assert len(part) <= context
            assert part.count(V.sov) == part.count(V.eov)
            assert part_weights == [0.0, *weights[start + 1 : start + len(part)]]


def test_long_chat_keeps_its_leading_turns_if_the_recipe_says_so(done, vision):
    wanted = expected(vision)
    ids, weights = wanted["talk", "chat"]
    first = ids.index(V.eos) + 1
    context = first + 5
    root = Path(done.chain.recipe.root)
    plan = chain_of(done.folder, root, context=context, shorten_long_chats=True).plan
    found = loaded(plan)
    assert found["talk", "chat", 0] == (ids[:first], weights[:first])
    assert not plan_faults(plan)


def test_codes_beyond_the_codebook_are_a_fault_of_a_deep_verify(done, tmp_path):
    import shutil

    from tokenmill.manifests.identity import sha256_hex
    from tokenmill.manifests.verify_archive import archive_faults

    shutil.copytree(done.chain.recipe.root, tmp_path / "root")
    snapshot = done.chain.tokenize["pages"]
    rows = snapshot.folder.read_rows(snapshot.commits[0])
    data = bytearray(done.archives[0].read_bytes())
    row = rows.row(0, named=True)
    at = row["codes_offset"] + row["codes_length"]
    data[at - 2 : at] = (2048).to_bytes(2, "little")
    faults = archive_faults("x.tar", BytesIO(bytes(data)), rows, snapshot.folder.config.about)
    assert [fault.what for fault in faults] == [
        f"member {row['key']}.codes.npy: its codes reach 2048, the codebook ends at 2047"
    ]
    assert sha256_hex(bytes(data)) != snapshot.commits[0].data.sha256


def test_archive_members_are_what_the_index_says(done):
    with tarfile.open(done.archives[0]) as archive:
        names = [member.name for member in archive]
        stored = json.loads(archive.extractfile("page.json").read())  # type: ignore[union-attr]
    assert names[:3] == ["page.codes.npy", "page.json", "page.text.npy"]
    assert stored["captions"] == [] and "This was the page" not in json.dumps(stored)


def test_archives_of_documents_are_the_same_bytes_whatever_reads_them(done, tmp_path):
    changed = recipe(done.folder, tmp_path)
    changed["execution"] = {"executor": "inline", "decode_threads": 1}
    chain = Chain(recipe=check_recipe(changed, "documents"), options=ChainOptions(quiet=True))
    assert chain.tokenize["pages"].digest == done.chain.tokenize["pages"].digest


def test_documents_that_exist_are_taken_over_and_give_the_same_archives(done, tmp_path, monkeypatch):
    import shutil

    from tokenmill.tokenize.vision_emu3 import Emu3VisionTokenizer

    root = Path(shutil.copytree(done.chain.recipe.root, tmp_path / "root"))
    given: list[int] = []
    encode = Emu3VisionTokenizer.encode_images
    monkeypatch.setattr(
        Emu3VisionTokenizer, "encode_images", lambda self, b: (given.append(len(b)), encode(self, b))[1]
    )
    before = done.chain.tokenize["pages"]
    changed = recipe(done.folder, root)
    changed["filter"]["document"]["rules"] = {"few": "num_pictures <= 2"}
    kept = Chain(recipe=check_recipe(changed, "documents"), options=ChainOptions(quiet=True)).tokenize["pages"]
    assert sum(given) == 1  # of the page that lost a picture
    again = chain_of(done.folder, tmp_path / "fresh").recipe
    scratch = recipe(done.folder, Path(again.root))
    scratch["filter"] = changed["filter"]
    fresh = Chain(recipe=check_recipe(scratch, "documents"), options=ChainOptions(quiet=True)).tokenize["pages"]
    assert [commit.data.sha256 for commit in kept.commits] == [commit.data.sha256 for commit in fresh.commits]
    assert kept.digest != before.digest
