"""Documents in WebDataset tars: places and digests of the JSON and its pictures, however these are named."""

from __future__ import annotations

import hashlib
import json

import pytest
from tests.pages import drawn, encoded_json, index_of, page, page_members, reason_of, talk, write_tar

from tokenmill.errors import RecipeError
from tokenmill.pipelines.sources import laid_out


def test_index_gives_the_place_of_the_json_and_of_every_picture(tmp_path):
    data = write_tar(tmp_path / "00000.tar", [*page_members("a", 0), *page_members("b", 2, 3)])
    rows = index_of(tmp_path)
    assert [(row.key, len(row.pictures), row.extension) for row in rows] == [("a", 2, "json"), ("b", 3, "json")]
    for row, first in zip(rows, (0, 2), strict=True):
        assert json.loads(data[row.offset : row.offset + row.length]) == page(first, len(row.pictures))
        for number, picture in enumerate(row.pictures):
            held = data[picture.offset : picture.offset + picture.length]
            assert held == drawn(first + number) and picture.path == "00000.tar" and picture.extension == "png"
            assert picture.sha256 == hashlib.sha256(held).hexdigest()
        assert json.loads(row.metadata)["pictures"][0] == f"https://example.org/scenes/{first}.png"
        assert "texts" not in row.metadata


def test_index_knows_the_same_page_under_another_key_and_with_other_metadata(tmp_path):
    other = {**page(0), "general_metadata": {"page": "another"}}
    members = [("b.0.png", drawn(0)), ("b.1.png", drawn(1)), ("b.json", encoded_json(other))]
    write_tar(tmp_path / "0.tar", [*page_members("a", 0), *members, *page_members("c", 1)])
    digests = [row.sha256 for row in index_of(tmp_path)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    "names", [("0.png", "1.png"), ("box.png", "CUP.PNG"), ("cup.png", "box.png"), ("1.png", "3.png")]
)
def test_index_finds_pictures_by_name_by_order_and_by_place(tmp_path, names):
    value = {"images": [None, "u/box.png", None, "https://e.org/cup.png?x=1"], "texts": ["a", None, "b", None]}
    is_turned = names[0] == "cup.png"
    held = (drawn(1), drawn(0)) if is_turned else (drawn(0), drawn(1))
    members = [(f"k.{name}", data) for name, data in zip(names, held, strict=True)]
    data = write_tar(tmp_path / "0.tar", [*members, ("k.json", encoded_json(value))])
    (row,) = index_of(tmp_path)
    assert row.error is None
    assert [data[one.offset : one.offset + one.length] for one in row.pictures] == [drawn(0), drawn(1)]


def test_index_does_not_take_a_number_for_the_name_of_a_url(tmp_path):
    value = {"images": ["https://e.org/1.png", "https://e.org/0.png"], "texts": [None, None]}
    write_tar(tmp_path / "0.tar", [("k.0.png", b"first"), ("k.1.png", b"second"), ("k.json", encoded_json(value))])
    (row,) = index_of(tmp_path)
    assert [one.sha256 for one in row.pictures] == [hashlib.sha256(data).hexdigest() for data in (b"first", b"second")]


def test_index_takes_one_bare_member_for_the_one_picture(tmp_path):
    write_tar(tmp_path / "0.tar", [("k.jpg", drawn(3, "JPEG")), ("k.json", encoded_json(talk(3)))])
    (row,) = index_of(tmp_path, layout="llava")
    assert row.error is None and [one.extension for one in row.pictures] == ["jpg"]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("k.0.png", b"x")], "no_document"),
        ([("k.json", b"{"), ("k.0.png", b"x")], "bad_json"),
        ([("k.json", b"\xff{}")], "bad_encoding"),
        ([("k.json", encoded_json(page(0)))], "remote_picture"),
        ([("k.json", encoded_json(talk(0)))], "missing_picture"),
        ([("k.json", encoded_json(page(0))), ("k.0.png", b"x")], "missing_picture"),
        ([("k.json", encoded_json(page(0))), ("k.0.png", b"x"), ("k.5.png", b"y")], "missing_picture"),
        ([*page_members("k", 0), ("k.2.png", b"z")], "unshown_picture"),
        ([("k.json", encoded_json({"images": [None], "texts": ["a"]})), ("k.0.png", b"z")], "unshown_picture"),
    ],
)
def test_index_says_why_a_document_is_none(tmp_path, members, reason):
    write_tar(tmp_path / "0.tar", [*members, *page_members("z", 4)])
    assert [reason_of(row) for row in index_of(tmp_path)] == [reason, None]


def test_document_of_more_bytes_than_a_worker_is_to_hold_is_too_large(tmp_path, monkeypatch):
    write_tar(tmp_path / "0.tar", [*page_members("a", 0), *page_members("b", 2, 1)])
    monkeypatch.setattr(laid_out, "MOST_BYTES", len(drawn(0)) + len(drawn(1)) - 1)
    assert [reason_of(row) for row in index_of(tmp_path)] == ["too_large", None]


def test_layout_is_refused_where_it_is_unknown_or_no_document_is_meant(tmp_path):
    with pytest.raises(RecipeError, match="no layout 'obelix'; allowed: auto, obelics"):
        index_of(tmp_path, layout="obelix")
    with pytest.raises(RecipeError, match="layout: is of documents"):
        index_of(tmp_path, modality="image", layout="llava")
