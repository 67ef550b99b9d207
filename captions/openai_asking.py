"""The two sides of asking: a caller that pulls requests and takes answers, and a loop that has them under way."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from tokenmill.captions.background_loop import BackgroundLoop, Shelf
from tokenmill.captions.captioner import Answer, Request
from tokenmill.captions.openai_client import Client
from tokenmill.captions.openai_wire import Question, QuestionWriter

_SHARE_OF_BATCH = 32  # a batch is this part of the places at least, unless answers are slow to come
_PATIENCE_S = 0.25


class Asking:
    """A client in a loop of its own, from the first request to `close`."""

    def __init__(self, client: Client, writer: QuestionWriter) -> None:
        self._client, self._writer = client, writer
        self._background = BackgroundLoop("tokenmill-openai")
        self._runs: set[_Run] = set()
        self._background.run(client.open())

    def answers(self, requests: Iterable[Request], concurrency: int, ahead: int) -> Iterator[Sequence[Answer]]:
        """Yield what is answered by now, again and again; no more than `concurrency` requests are asked at a time, and
        no more than `ahead` besides them wait to be asked, or are answered and not yet given back for good."""
        run = _Run(self._client, self._background.loop, concurrency)
        self._runs.add(run)
        try:
            yield from self._through(run, iter(requests), max(1, concurrency // _SHARE_OF_BATCH), concurrency + ahead)
        finally:
            self._runs.discard(run)
            if not self._background.loop.is_closed():
                self._background.run(run.cancel())

    def _through(self, run: _Run, requests: Iterator[Request], at_least: int, most: int) -> Iterator[Sequence[Answer]]:
        pulled, is_over = 0, False
        while True:
            late = time.monotonic() + _PATIENCE_S  # pulling may be slow; what is answered meanwhile should be stored
            while not is_over and pulled < most and not (run.shelf and time.monotonic() > late):
                is_over = run.shelf.has_failed or not self._pull(run, requests)
                pulled += not is_over
            if not pulled:
                return
            batch = run.shelf.take(min(at_least, pulled), _PATIENCE_S)
            yield batch
            pulled -= len(batch)

    def _pull(self, run: _Run, requests: Iterator[Request]) -> bool:
        request = next(requests, None)
        if request is not None:
            run.submit(self._writer.question(request))
        return request is not None

    def close(self) -> None:
        """Hang up and end the thread."""
        for run in self._runs:
            run.shelf.fail(RuntimeError("the captioner was closed while it was asked"))
        self._background.close(self._client.close)


class _Run:
    """The requests of one caller: submitted from its thread, asked from `concurrency` places in the loop's."""

    def __init__(self, client: Client, loop: asyncio.AbstractEventLoop, concurrency: int) -> None:
        self._client, self._loop, self._concurrency = client, loop, concurrency
        self.shelf: Shelf[Answer] = Shelf()
        self._inbox: deque[Question] = deque()
        self._places: set[asyncio.Task[None]] = set()
        self._is_called = False

    def submit(self, question: Question) -> None:
        self._inbox.append(question)
        if not self._is_called and len(self._places) < self._concurrency:  # one call into the loop may start several
            self._is_called = True
            self._loop.call_soon_threadsafe(self._start)

    def _start(self) -> None:
        self._is_called = False
        num_free = 0 if self.shelf.has_failed else self._concurrency - len(self._places)
        for _ in range(min(len(self._inbox), num_free)):
            place = self._loop.create_task(self._place())
            self._places.add(place)

    async def _place(self) -> None:
        """Ask one request after the other while there are any."""
        try:
            while self._inbox:
                self.shelf.put(await self._client.ask(self._inbox.popleft()))
        except Exception as error:  # whatever it is, the caller has to hear of it
            self.shelf.fail(error)
        finally:
            self._places.discard(asyncio.current_task())
            self._start()  # for what was submitted since it looked: its caller still saw this place

    async def cancel(self) -> None:
        """Drop what is under way."""
        self._inbox.clear()
        places = list(self._places)
        for place in places:
            place.cancel()
        await asyncio.gather(*places, return_exceptions=True)
