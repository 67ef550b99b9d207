"""The other end of `line_child.py`: answers questions from standard input until it closes.

While a question is worked on, the kernel's alarm is set: it ends the process even inside hung C code with the parent
gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from tokenmill.errors import SampleError
from tokenmill.pipelines.fault_message import fault_message

_GRACE_S = 5.0  # after the parent has given up, until the alarm rings


def serve(answer: Callable[[Mapping[str, Any]], Mapping[str, Any]], prepare: Callable[[], object]) -> None:
    """Call `prepare` once (slow imports), then `answer` for every line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing that a library prints may look like an answer
    _tell(out, _guarded(lambda _: {"ready": bool(prepare())}, {}))
    for line in sys.stdin:
        question = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, question["limit_s"] + _GRACE_S)
        found = _guarded(answer, question)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _tell(out, found)


def _guarded(
    answer: Callable[[Mapping[str, Any]], Mapping[str, Any]], question: Mapping[str, Any]
) -> Mapping[str, Any]:
    try:
        return answer(question)
    except SampleError as error:
        return {"reason": error.reason, "message": error.message}
    except Exception as error:
        return {"raised": f"{type(error).__name__}: {fault_message(error)}"}


def _tell(out: Any, found: Mapping[str, Any]) -> None:
    out.write(json.dumps(found) + "\n")
    out.flush()
