"""Tables of prompts and questions, cut into units of a few rows; what a unit is made of are its rows, not the file.

Rows travel with the unit to whoever works on it, so a table may lie on the machine that starts the job alone; a million
prompts of 200 bytes are 0.5 GB there. A table that grows keeps its units but for the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenmill.errors import RecipeError, RunError, SampleError
from tokenmill.inspection import place_of
from tokenmill.manifests.identity import digest_of_rows
from tokenmill.manifests.records import InputRef
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.jobs import Unit
from tokenmill.pipelines.sources.metadata import row_text
from tokenmill.pipelines.sources.tables import ALL_TABLES, Row, table_rows

NumberedRow = tuple[int, Row]
_LINES = ".txt"


def table_place(url: str, storage: Mapping[str, Any], where: str) -> tuple[Store, str]:
    """Return the store and name of a table; raises RecipeError naming `where` it was asked for."""
    store, name = place_of(url, storage if "://" in url else {})
    if not name or not store.exists(name):
        raise RecipeError(f"{where}: there is no table {url}")
    if not name.lower().endswith((*ALL_TABLES, _LINES)):
        raise RecipeError(f"{where}: {url} is no table; allowed: {', '.join((*ALL_TABLES, _LINES))}")
    return store, name


def table_units(store: Store, name: str, field: str, unit_rows: int) -> list[Unit]:
    """Cut a table; each unit holds its numbered rows. `field` is what a line of a .txt is called.

    Raises:
        RunError: the table cannot be read, or has no row.
    """
    rows = list(_rows(store, name, field))
    if not rows:
        raise RunError(f"{store.url}/{name}: has no row")
    parts = [rows[start : start + unit_rows] for start in range(0, len(rows), unit_rows)]
    return [Unit(inputs=(_reference(name, part),), payload={"rows": part}) for part in parts]


def row_json(row: Row) -> str:
    """Return a row as it was given, as JSON; of one that could not be parsed an empty object."""
    return "{}" if isinstance(row, SampleError) else row_text(row)


def _reference(name: str, rows: Sequence[NumberedRow]) -> InputRef:
    told = ((number, str(row) if isinstance(row, SampleError) else row_json(row)) for number, row in rows)
    digest = digest_of_rows(("number", "row"), told)
    return InputRef(name=name, digest=digest, start=rows[0][0], end=rows[-1][0] + 1, unit_of_range="rows")


def _rows(store: Store, name: str, field: str) -> Iterator[NumberedRow]:
    if not name.lower().endswith(_LINES):
        yield from table_rows(store, name)
        return
    lines = [line for line in store.read_bytes(name).splitlines() if line.strip()]
    for number, line in enumerate(lines):
        try:
            yield number, {field: line.decode("utf-8-sig" if number == 0 else "utf-8").strip()}
        except UnicodeDecodeError as error:
            yield number, SampleError("bad_encoding", f"byte {error.start} of the line is not UTF-8")
