"""Columns of tables that are known by their digests, as arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.errors import ManifestError
from tokenmill.manifests.named_tables import NamedTable
from tokenmill.manifests.stagedir import table_bytes

_WIDTHS = (pl.Int64, pl.UInt32, pl.Int32, pl.UInt16, pl.Int8)


@given(rows=st.lists(st.tuples(*[st.none() | st.integers(0, 127) for _ in _WIDTHS]), max_size=40))
def test_arrays_of_whole_numbers_of_any_width_have_nulls_as_0(rows: Sequence[tuple[int | None, ...]]) -> None:
    names = [f"n{width}" for width in range(len(_WIDTHS))]
    frame = pl.DataFrame(rows, schema=dict(zip(names, _WIDTHS, strict=True)), orient="row")
    table = NamedTable(path="t.parquet", data=table_bytes(frame.with_columns(s=pl.lit("x")), 1))

    _, found = table.arrays(["s"], names)

    expected = np.array([[value or 0 for value in row] for row in rows], np.int64).reshape(-1, len(names))
    assert found.dtype == np.int64
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("value", "kind", "told"),
    [("1", pl.String, "whole numbers"), (1.5, pl.Float64, "whole numbers"), (2**63, pl.UInt64, "2.63")],
)
def test_arrays_of_another_kind_are_refused_naming_the_table(value: object, kind: pl.DataType, told: str) -> None:
    frame = pl.DataFrame({"n": [value], "s": ["x"]}, schema={"n": kind, "s": pl.String})
    table = NamedTable(path="t.parquet", data=table_bytes(frame, 1))

    with pytest.raises(ManifestError, match=rf"t\.parquet: .*{told}"):
        table.arrays(["s"], ["n"])
