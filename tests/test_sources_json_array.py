"""Ranges of a JSON array: the elements are those that a parser finds, wherever the file's pieces end."""

from __future__ import annotations

import io
import json

import pytest

from tokenmill.errors import RunError
from tokenmill.pipelines.sources import json_array
from tokenmill.pipelines.sources.json_array import element_ranges, elements_of

ODD = [
    {"a": 'quotes " and \\ and ] and }, {', "b": ["[", {"c": "\\\\"}]},
    {"a": "\\\" \\u005d", "b": []},
    {},
    {"ü": "ends with a backslash \\", "b": [[], [1, 2], {"c": {"d": ","}}]},
    {"a": "\n\t,", "b": "]"},
]  # fmt: skip


def _read(data: bytes, elements: int) -> list[object]:
    ranges, is_whole = element_ranges(io.BytesIO(data), elements, "file.json")
    assert is_whole
    found = [[element for _, element in elements_of(data[start:end])] for start, end in ranges]
    assert all(len(some) <= elements for some in found)
    return [json.loads(element) for some in found for element in some]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_ranges_hold_the_elements_that_a_parser_finds(monkeypatch, chunk, indent):
    monkeypatch.setattr(json_array, "_CHUNK_BYTES", chunk)
    data = (json.dumps(ODD * 3, indent=indent, ensure_ascii=False) + "\n").encode()
    assert chunk < 8 or _read(b"\xef\xbb\xbf" + data, 2) == ODD * 3
    assert _read(data, 4) == ODD * 3


def test_elements_know_where_they_lie():
    data = b' {"a": 1} ,\n{"b": 2}'
    assert [(offset, json.loads(element)) for offset, element in elements_of(data)] == [(1, {"a": 1}), (12, {"b": 2})]


def test_ranges_of_an_empty_array_and_of_one_object():
    assert _read(b"[ ]", 3) == []
    assert _read(b' {"a": [1, 2]}', 3) == [{"a": [1, 2]}]


def test_ranges_of_a_file_that_is_cut_off_say_so():
    data = json.dumps(ODD).encode()[:-20]
    ranges, is_whole = element_ranges(io.BytesIO(data), 2, "file.json")
    assert not is_whole and ranges[-1][1] == len(data)


def test_ranges_refuse_what_is_no_array_and_what_follows_one():
    with pytest.raises(RunError, match=r"file\.json: neither an array of objects nor an object"):
        element_ranges(io.BytesIO(b'"text"'), 2, "file.json")
    with pytest.raises(RunError, match="something follows the array"):
        element_ranges(io.BytesIO(b"[{}}, {}]"), 2, "file.json")


def test_ranges_refuse_an_element_without_an_end(monkeypatch):
    monkeypatch.setattr(json_array, "_LONGEST_ELEMENT", 1000)
    monkeypatch.setattr(json_array, "_CHUNK_BYTES", 256)
    with pytest.raises(RunError, match="what begins at byte 4 of the array does not end"):
        element_ranges(io.BytesIO(b'[{},\n{"a": {"b": 1}' + b', {"a": 2}' * 1000 + b"]"), 2, "file.json")
