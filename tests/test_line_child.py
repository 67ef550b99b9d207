"""A child that answers lines: what a hostile file makes it raise costs that file, other faults end the run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tokenmill.errors import RunError, SampleError
from tokenmill.pipelines.line_child import LineChild

CODE = """
import builtins
import os
from tokenmill.pipelines.line_child_server import serve

def answer(question):
    if "raise" in question:
        raise getattr(builtins, question["raise"])("while it was opened")
    return {"number": question["number"], "process": os.getpid()}

if __name__ == "__main__":
    serve(answer, lambda: True)
"""


@pytest.fixture
def child(tmp_path, monkeypatch) -> Iterator[LineChild]:
    (tmp_path / "raising_child.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    with LineChild("raising_child", timeout_s=20) as child:
        yield child


@pytest.mark.parametrize(
    ("raised", "reason", "transient"),
    [
        ("MemoryError", "too_much_memory", True),
        ("ValueError", "decoder_error", False),
        ("OverflowError", "decoder_error", False),
    ],
)
def test_what_a_file_makes_the_library_raise_is_that_files_fault(child, raised, reason, transient):
    with pytest.raises(SampleError) as caught:
        child.ask({"raise": raised})
    assert (caught.value.reason, caught.value.transient) == (reason, transient)
    assert child.ask({"number": 7})["number"] == 7


@pytest.mark.parametrize("raised", ["ImportError", "FileNotFoundError", "PermissionError"])
def test_what_is_no_files_fault_ends_the_run(child, raised):
    with pytest.raises(RunError, match=raised):
        child.ask({"raise": raised})


def test_signals_to_all_processes_of_a_run_leave_the_child_at_work(child):
    first = child.ask({"number": 1})["process"]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(first, number)
    assert child.ask({"number": 2}) == {"number": 2, "process": first}
