"""Boundaries between units: stable under insertion, bounded in size, covering everything exactly once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.pipelines.units import cut_rows, group_files


@dataclass(frozen=True)
class File:
    path: str
    size: int


names = st.lists(st.text("abcdefgh0123/", min_size=1, max_size=12), unique=True, min_size=1, max_size=120)
sizes = st.integers(0, 1000)


def _files(paths: list[str], size: int) -> list[File]:
    return [File(path, size) for path in sorted(paths)]


@given(paths=names, size=sizes, max_bytes=st.integers(1, 5000), mean=st.integers(1, 20))
def test_groups_cover_every_file_once_in_order_and_stay_below_the_limit(paths, size, max_bytes, mean):
    files = _files(paths, size)
    groups = group_files(files, max_bytes=max_bytes, mean_files=mean)
    assert [file for group in groups for file in group] == files
    assert all(groups)
    assert all(len(group) == 1 or sum(file.size for file in group) <= max_bytes for group in groups)


@settings(max_examples=200)
@given(paths=names, new=st.text("abcdefgh0123/", min_size=1, max_size=12), mean=st.integers(2, 12))
def test_groups_after_inserting_a_file_differ_only_where_it_lies(paths, new, mean):
    """Below the limit on bytes a boundary is a property of a file's own name."""
    old = group_files(_files(list({*paths} - {new}), 1), max_bytes=10**9, mean_files=mean) if {*paths} - {new} else []
    after = group_files(_files(list({*paths, new}), 1), max_bytes=10**9, mean_files=mean)
    before = {tuple(group) for group in old}
    changed = [group for group in after if tuple(group) not in before]
    assert len(changed) <= 2
    assert any(file.path == new for group in changed for file in group)
    assert len(before - {tuple(group) for group in after}) <= 1


@given(paths=names, new=st.text("abcdefgh0123/", min_size=1, max_size=12), max_bytes=st.integers(2, 9))
def test_groups_after_inserting_a_file_stay_the_same_behind_the_next_boundary(paths, new, max_bytes):
    """The limit on bytes moves boundaries too, but no further than to the next file whose name begins a group."""
    paths = list({*paths} - {new})
    unlimited = [group_files(_files(some, 1), max_bytes=10**9, mean_files=4) for some in (paths, [*paths, new])]
    stretch = {file.path for group in unlimited[1] if group not in unlimited[0] for file in group}
    before = group_files(_files(paths, 1), max_bytes=max_bytes, mean_files=4)
    after = group_files(_files([*paths, new], 1), max_bytes=max_bytes, mean_files=4)
    elsewhere = [group for group in after if not stretch & {file.path for file in group}]
    assert all(group in before for group in elsewhere)


@given(paths=names, extra=st.lists(st.text("z", min_size=1, max_size=30), unique=True, max_size=10))
def test_groups_after_appending_files_keep_all_but_the_last(paths, extra):
    files = _files(paths, 1)
    appended = files + [File("zz" + name, 1) for name in sorted(extra)]
    before = group_files(files, max_bytes=10**9, mean_files=4)
    after = group_files(appended, max_bytes=10**9, mean_files=4)
    assert after[: len(before) - 1] == before[:-1]


@given(paths=names)
def test_groups_of_mean_one_are_single_files(paths):
    groups = group_files(_files(paths, 1), max_bytes=10**9, mean_files=1)
    assert [len(group) for group in groups] == [1] * len(paths)


@given(rows=st.integers(0, 3000), size=st.integers(0, 10**9), max_rows=st.integers(1, 500), limit=st.integers(1, 10**6))
def test_cut_rows_covers_all_rows_once_in_equal_ranges(rows, size, max_rows, limit):
    ranges = cut_rows(rows, size, max_rows=max_rows, max_bytes=limit)
    assert ranges[0].start == 0 and ranges[-1].end == rows
    assert all(a.end == b.start for a, b in pairwise(ranges))
    lengths = [piece.end - piece.start for piece in ranges]
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= max_rows
    assert all(lengths) or rows == 0
    assert [piece.whole for piece in ranges] == [len(ranges) == 1] * len(ranges)


def test_cut_rows_bounds_bytes_as_well_as_rows():
    assert len(cut_rows(100, 1000, max_rows=1000, max_bytes=300)) == 4
    assert len(cut_rows(100, 1000, max_rows=10, max_bytes=300)) == 10
    assert len(cut_rows(2, 1000, max_rows=10, max_bytes=1)) == 2
    assert len(cut_rows(0, 0, max_rows=10, max_bytes=1)) == 1
