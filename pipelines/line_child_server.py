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

from tokenmill.errors import RunError, SampleError
from tokenmill.pipelines.fault_message import fault_message

_GRACE_S = 5.0  # after the parent has given up, until the alarm rings
_NO_FILES_FAULT = (ImportError, FileNotFoundError, PermissionError, RunError)


def serve(answer: Callable[[Mapping[str, Any]], Mapping[str, Any]], prepare: Callable[[], object]) -> None:
    """Call `prepare` once (slow imports), then `answer` for every line."""
    leave_ending_to_the_parent()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing that a library prints may look like an answer
    _tell(out, _prepared(prepare))
    for line in sys.stdin:
        question = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, question["limit_s"] + _GRACE_S)
        found = _guarded(answer, question)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _tell(out, found)


def leave_ending_to_the_parent() -> None:
    """Ignore what a terminal, a scheduler or a service manager sends to all processes alike.

    A parent that drains goes on asking; a child that died of its signal would be a film's fault. Without a parent the
    child reads the end of its input, or the alarm rings.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _prepared(prepare: Callable[[], object]) -> Mapping[str, Any]:
    try:
        return {"ready": bool(prepare())}
    except Exception as error:
        return _raised(error)


def _guarded(
    answer: Callable[[Mapping[str, Any]], Mapping[str, Any]], question: Mapping[str, Any]
) -> Mapping[str, Any]:
    try:
        return answer(question)
    except SampleError as error:
        return {"reason": error.reason, "message": error.message, "transient": error.transient}
    except MemoryError:  # of the limit's making: where the machine itself has no more, the kernel kills
        return {"reason": "too_much_memory", "message": "it takes more memory than is allowed", "transient": True}
    except _NO_FILES_FAULT as error:
        return _raised(error)
    except Exception as error:  # hostile bytes make PyAV raise anything
        return {"reason": "decoder_error", "message": fault_message(error), "transient": False}


def _raised(error: Exception) -> Mapping[str, Any]:
    return {"raised": f"{type(error).__name__}: {fault_message(error)}"}


def _tell(out: Any, found: Mapping[str, Any]) -> None:
    out.write(json.dumps(found) + "\n")
    out.flush()
