"""A captioner as a third party writes one: every question costs something, is logged, and may be made to go wrong.

Put into a test's process by `install`, into children and Ray's workers by the environment (`tests/asking.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from tokenmill.captions import captioner
from tokenmill.captions.captioner import Answer, Request, Usage
from tokenmill.errors import SampleError
from tokenmill.manifests.identity import digest_of

NAME, WHERE = "logged", "tests.asked_captioner:LoggedCaptioner"


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the captioner known in this process while a test runs."""
    monkeypatch.setitem(captioner.BUILT_IN, NAME, WHERE)


@dataclass(frozen=True, kw_only=True)
class LoggedCaptioner:
    """Answers with the prompt and a digest of what it sees; writes a line a question to `log` before it does.

    Attributes:
        takes_pictures: whether it looks at pixels; else at the prompt alone.
        batch: questions that are answered together.
        faults: a JSON file beside: prompt → what happens to it (`refuse`, `fail`, `pass`: fails for now, `empty`,
            `hang`, `skip`: is never answered), read anew for every question.
        die_after: this process is killed with so many questions asked (by all processes that write to the log).
        delay_s: of each batch.
        keeps_thread: leaves a thread behind that never ends.
    """

    log: str
    takes_pictures: bool = False
    batch: int = 2
    faults: str = ""
    die_after: int = 0
    delay_s: float = 0.0
    keeps_thread: bool = False
    name: ClassVar = NAME
    version: ClassVar = 1
    asks: ClassVar = True
    max_side_px: ClassVar = None

    @property
    def takes(self) -> Literal["text", "pixels"]:
        return "pixels" if self.takes_pictures else "text"

    @property
    def fingerprint(self) -> str:
        return digest_of([self.name, self.version, self.takes_pictures])

    def answers(self, requests: Iterable[Request]) -> Iterator[Sequence[Answer]]:
        if self.keeps_thread:
            threading.Thread(target=time.sleep, args=(3600,)).start()
        batch: list[Request] = []
        for request in requests:
            batch.append(request)
            if len(batch) == self.batch:
                yield self._answered(batch)
                batch = []
        if batch:
            yield self._answered(batch)

    def close(self) -> None:
        """Hold nothing."""

    def _answered(self, batch: Sequence[Request]) -> list[Answer]:
        for request in batch:
            self._note(request)
        time.sleep(self.delay_s)
        found = [self._answer(request) for request in batch]
        return [one for one in found if one is not None][::-1]  # in whatever order

    def _note(self, request: Request) -> None:
        with Path(self.log).open("a") as file:
            file.write(json.dumps([request.sample["key"], request.prompt, request.seed]) + "\n")
        if self.die_after and len(Path(self.log).read_text().splitlines()) >= self.die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    def _answer(self, request: Request) -> Answer | None:
        fault = json.loads(Path(self.faults).read_text()).get(request.prompt, "") if self.faults else ""
        usage = Usage(requests=1, input_tokens=len(request.prompt), output_tokens=7)
        if fault == "skip":
            return None
        if fault == "hang":
            time.sleep(3600)
        if fault in ("fail", "pass"):
            error = SampleError("http_503" if fault == "pass" else "http_400", "no", transient=fault == "pass")
            usage = Usage(requests=3, retried={"http_503": 2})
            return Answer(index=request.index, error=error, usage=usage, model="small")
        seen = b"" if request.frames is None else request.frames.tobytes()
        text = f"It says: {request.prompt} {hashlib.sha256(seen).hexdigest()[:6]} {request.seed}"
        texts = {"refuse": "I'm sorry, but I can't help with that.", "empty": " "}
        return Answer(
            index=request.index, texts=(texts.get(fault, text),), usage=usage, model="small", finish_reason="stop"
        )
