"""Downloads in a thread of their own while the worker packs; the worker takes results in the order of the rows."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future
from types import TracebackType

from tokenmill.pipelines.sources.byte_budget import ByteBudget
from tokenmill.pipelines.sources.download import Downloader
from tokenmill.pipelines.sources.download_settings import DownloadSettings
from tokenmill.pipelines.sources.polite_hosts import HostMemory


class DownloadThread:
    """A thread with an event loop that downloads; `with` ends it, and drops what is still under way.

    `memory` is what the worker knows of hosts from its units before, and what this one adds.
    """

    def __init__(self, settings: DownloadSettings, memory: dict[str, HostMemory]) -> None:
        self._settings, self._memory = settings, memory
        self._budget = ByteBudget(settings.bytes_ahead)
        self._loop = asyncio.new_event_loop()
        self._ready: Future[Downloader] = Future()
        self._thread = threading.Thread(target=self._serve, name="downloads", daemon=True)

    def __enter__(self) -> DownloadThread:
        self._thread.start()
        self._downloader = self._ready.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def submit(self, row: int, url: str) -> Future[bytes]:
        """Begin a download; rows are numbered in the order in which they will be waited for."""
        return asyncio.run_coroutine_threadsafe(self._downloader.fetch(row, url), self._loop)

    def result(self, row: int, future: Future[bytes]) -> bytes:
        """Wait for a row; raises SampleError. Its bytes count as held until `release`."""
        self._loop.call_soon_threadsafe(self._budget.wait_for, row)
        return future.result()

    def release(self, count: int) -> None:
        self._loop.call_soon_threadsafe(self._budget.give, count)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run())
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            raise
        finally:
            self._loop.close()

    async def _run(self) -> None:
        self._end = asyncio.Event()
        async with Downloader(self._settings, self._budget, self._memory) as downloader:
            self._ready.set_result(downloader)
            await self._end.wait()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
