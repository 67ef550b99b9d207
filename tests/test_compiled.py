"""Compiled functions: kept between processes, and never used again once anything in them has changed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TABLES = "import numpy as np\nFIRST, SECOND = {}\nBEFORE = np.array({})\n"
CALLED = "from tokenmill.compiled import compiled\n@compiled\ndef called(x):\n    return x + {}\n"
KERNEL = """
from tokenmill.compiled import compiled
from tables_of_kernel import BEFORE, FIRST
from called_by_kernel import called

@compiled
def kernel(items):
    return called(items[FIRST]) + BEFORE[0]
"""


def imported(folder: Path, columns: str, before: str, added: str) -> Any:
    """Write three modules and import the kernel anew, as the next process would; its own file never changes."""
    sources = {"tables_of_kernel": TABLES.format(columns, before), "called_by_kernel": CALLED.format(added)}
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    for name in (*sources, "kernel_itself"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    return importlib.import_module("kernel_itself").kernel


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "kernel_itself.py").write_text(KERNEL)
    return tmp_path


def test_compiled_function_is_kept_until_anything_that_it_uses_changes(folder: Path) -> None:
    items = np.array([10, 20])

    assert imported(folder, "0, 1", "[0]", "1")(items) == 11
    assert imported(folder, "1, 0", "[0]", "1")(items) == 21
    assert imported(folder, "1, 0", "[5]", "1")(items) == 26
    assert imported(folder, "1, 0", "[5]", "2")(items) == 27
    again = imported(folder, "1, 0", "[5]", "2")

    assert again(items) == 27
    assert sum(again.stats.cache_hits.values()) == 1
