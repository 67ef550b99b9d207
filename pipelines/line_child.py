"""A child process that answers one JSON line with another: for what opens hostile files and moves no pixels.

Any answer costs some 0.1 ms above its work. A child that dies or is late is replaced at the next question; it lies to
nobody but the one who asked. The decoder's child has a wider way for frames (`frame_socket.py`).
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from tokenmill.errors import RunError, SampleError

_START_S = 120.0  # Python on a cold, busy disk
_LONGEST_LINE = 1 << 20


class LineChild:
    """Asks `python -m module`, started at the first question; a context manager, for one thread.

    Args:
        module: what runs in the child, see `line_child_server.py`.
        timeout_s: wall-clock limit of an answer, unless a question brings its own.
    """

    def __init__(self, module: str, *, timeout_s: float) -> None:
        self._module = module
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def ask(self, question: Mapping[str, Any], *, timeout_s: float | None = None) -> dict[str, Any]:
        """Return the answer.

        Raises:
            SampleError: what the child says is wrong, `decoder_error`, `decoder_crash`, or `too_much_memory` or
                `timeout` (transient).
            RunError: the child cannot start, or failed for a reason that is no file's fault.
        """
        limit_s = timeout_s or self._timeout_s
        process = self._started()
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps({**question, "limit_s": limit_s}).encode() + b"\n")
            process.stdin.flush()
            answer = self._line(process, limit_s)
            if answer.get("reason") == "too_much_memory":
                self.close()  # what a heap was torn into does not come back
        except TimeoutError as error:
            self.close()
            raise _timed_out(limit_s) from error
        except (EOFError, ConnectionError) as error:
            raise self._died(process, limit_s) from error
        return _checked(answer, self._module)

    def close(self) -> None:
        """End the child; the next question starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:  # half a question was still in it
                    continue

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            command = [sys.executable, "-P", "-m", self._module]
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            try:
                ready = self._line(self._process, _START_S)
            except (OSError, EOFError) as error:
                self.close()
                raise RunError(f"a child process did not start; try: python -m {self._module}") from error
            if "ready" not in ready:
                self.close()
            _checked(ready, self._module)
        return self._process

    def _line(self, process: subprocess.Popen[bytes], limit_s: float) -> dict[str, Any]:
        assert process.stdout is not None
        deadline = time.monotonic() + limit_s
        text = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not text.endswith(b"\n"):
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not selector.select(left_s):
                    raise TimeoutError
                part = os.read(process.stdout.fileno(), 65_536)
                if not part or len(text) > _LONGEST_LINE:
                    raise EOFError
                text += part
        answer: dict[str, Any] = json.loads(text)
        return answer

    def _died(self, process: subprocess.Popen[bytes], limit_s: float) -> SampleError:
        code = process.wait(5.0)
        self.close()
        if code == -signal.SIGALRM:  # the parent was stopped meanwhile
            return _timed_out(limit_s)
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        transient = code == -signal.SIGKILL  # somebody else's decision, most likely for lack of memory
        return SampleError("decoder_crash", f"the child process died: {cause}", transient=transient)


def _timed_out(limit_s: float) -> SampleError:
    return SampleError("timeout", f"no answer within {limit_s:g} s", transient=True)


def _checked(answer: Mapping[str, Any], module: str) -> dict[str, Any]:
    if "reason" in answer:
        raise SampleError(answer["reason"], answer["message"], transient=answer["transient"])
    if "raised" in answer:
        raise RunError(f"{module}: {answer['raised']}")
    return dict(answer)
