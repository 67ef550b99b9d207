"""Fetches pictures over HTTP: within limits, from public addresses only, and not against their owner's word.

Redirects are followed here and not by the library, so every hop takes its host's turn and is checked as the first was.
A fault that may pass (time-out, reset, 429, 5xx) is tried again, later each time; all others are final at once. Every
request has a connection of its own, so there are never more sockets than requests under way.
"""

from __future__ import annotations

import asyncio
import email.utils
import errno
import random
import re
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError
from yarl import URL

from tokenmill.errors import RunError, SampleError
from tokenmill.pipelines.sources.byte_budget import ByteBudget, CrowdedError, Share
from tokenmill.pipelines.sources.download_settings import DownloadSettings
from tokenmill.pipelines.sources.opt_out import opted_out
from tokenmill.pipelines.sources.polite_hosts import HostMemory, HostShutError, PoliteHosts
from tokenmill.pipelines.sources.safe_addresses import PrivateAddressError, parse_networks, socket_maker

_LONGEST_URL = 8192
_PLAIN_URL = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+")
_HOST = re.compile(r"[A-Za-z0-9_.:%-]+")
_CHUNK_BYTES = 65_536
_EXPECTED_BYTES = 2**18  # of a picture, until its server says or sends more
_DNS_THREADS, _DNS_CACHE_S = 32, 300
_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_BUSY = (429, 503)
_LONGEST_RETRY_AFTER_S = 86_400.0
_SECONDS = re.compile(r"[0-9]{1,9}")
_OTHER_SERVICES = frozenset(  # ports where an HTTP request could be taken for a command of another protocol
    (21, 22, 23, 25, 53, 110, 119, 143, 389, 445, 465, 514, 587, 636, 993, 995, 2049, 3306, 3389, 5432, 6379, 11211)
)
_OUT_OF_SOCKETS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS)
_UNKNOWN_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


class Downloader:
    """Fetches one URL after the other in one event loop; `async with` opens its connections."""

    def __init__(self, settings: DownloadSettings, budget: ByteBudget, memory: dict[str, HostMemory]) -> None:
        self._settings, self._budget = settings, budget
        self._hosts = PoliteHosts(
            memory,
            per_host=settings.per_host,
            interval_s=settings.host_interval_s,
            longest_wait_s=settings.longest_wait_s,
        )
        self._slots = asyncio.Semaphore(settings.concurrency)

    async def __aenter__(self) -> Downloader:
        settings = self._settings
        self._resolving = ThreadPoolExecutor(_DNS_THREADS)
        asyncio.get_running_loop().set_default_executor(self._resolving)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,  # the limits are ours
                force_close=True,
                ttl_dns_cache=_DNS_CACHE_S,
                socket_factory=socket_maker(parse_networks(settings.allow_private)),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": settings.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=settings.connect_timeout_s, sock_read=settings.read_timeout_s
            ),
            trust_env=False,  # a proxy would connect in our place, to any address
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        self._resolving.shutdown(wait=False, cancel_futures=True)

    async def fetch(self, row: int, url: str) -> bytes:
        """Fetch one picture; rows are numbered in the order in which they will be waited for.

        Raises:
            SampleError: with one of the reasons in docs/sources.md; `transient` where another run may do better.
            RunError: this process may open no more sockets.
        """
        try:
            return await self._tried(row, parsed_url(url))
        except (SampleError, RunError, MemoryError, ImportError):
            raise
        except Exception as error:  # what a hostile answer can make libraries raise is not a closed list
            raise SampleError("bad_response", type(error).__name__) from error

    async def _tried(self, row: int, place: URL) -> bytes:
        expected, tries = min(_EXPECTED_BYTES, self._settings.max_bytes), 0
        last: SampleError | None = None
        while True:
            share = await self._budget.share(row, expected)
            kept = 0
            try:
                found = await self._follow(share, place)
                kept = len(found)
                return found
            except CrowdedError:
                expected = min(share.wanted, self._settings.max_bytes)  # not a try: it begins again once there is room
                continue
            except HostShutError as error:
                raise last or error from None  # the answer that made it shut says more
            except SampleError as error:
                tries += 1
                if not error.transient or tries == self._settings.tries:
                    raise
                last = error
            finally:
                share.settle(kept)
            await asyncio.sleep(self._settings.backoff_s * 2 ** (tries - 1) * random.uniform(0.75, 1.25))

    async def _follow(self, share: Share, place: URL) -> bytes:
        for _ in range(self._settings.max_redirects + 1):
            if place.port in _OTHER_SERVICES and place.port not in self._settings.allow_ports:
                raise SampleError("bad_url", f"port {place.port} is that of another service (allow_ports)")
            host = _host(place)
            async with self._hosts.turn(host), self._slots:
                await self._hosts.begin(host)
                found = await self._request(share, place)
            if isinstance(found, bytes):
                return found
            place = found
        raise SampleError("too_many_redirects", f"more than {self._settings.max_redirects} redirects")

    async def _request(self, share: Share, place: URL) -> bytes | URL:
        """Ask once; returns the picture, or where it lies."""
        host, answered = _host(place), False
        try:
            async with (
                asyncio.timeout(self._settings.total_timeout_s),
                self._session.get(place, allow_redirects=False) as answer,
            ):
                answered = True
                self._hosts.answered(host, busy=answer.status in _BUSY)
                if answer.status in _REDIRECTS:
                    self._check_opt_out(answer)
                    return _redirected(place, answer)
                self._check_status(host, answer)
                self._check_opt_out(answer)
                return await self._body(share, answer)
        except _BROKEN as error:
            _check_sockets(error)
            fault = _fault(error)
            if not answered and fault.transient:
                self._hosts.silent(host)
            raise fault from error

    def _check_opt_out(self, answer: aiohttp.ClientResponse) -> None:
        if self._settings.ignore_opt_out:
            return
        headers = answer.headers
        directive = opted_out(headers.getall("X-Robots-Tag", ()), headers.getall("TDM-Reservation", ()))
        if directive is not None:
            raise SampleError("opted_out", f"its server says {directive}")

    def _check_status(self, host: str, answer: aiohttp.ClientResponse) -> None:
        if answer.status == 200:
            return
        if answer.status in _BUSY:
            self._hosts.quiet(host, _retry_after_s(answer.headers.get("Retry-After", "")))
        message = f"its server answered {answer.status}"
        raise SampleError(f"http_{answer.status}", message, transient=answer.status in _PASSING)

    async def _body(self, share: Share, answer: aiohttp.ClientResponse) -> bytes:
        """Read an answer within `max_bytes`, whatever it says about its length."""
        limit = self._settings.max_bytes
        data = bytearray()
        _check_size(answer.content_length or 0, limit)
        share.grow(answer.content_length or 0)
        async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
            _check_size(len(data) + len(chunk), limit)
            share.grow(len(data) + len(chunk))
            data += chunk
        return bytes(data)


def _check_size(count: int, limit: int) -> None:
    if count > limit:
        raise SampleError("too_large", f"more than {limit} bytes")


def parsed_url(text: str) -> URL:
    """Return a URL that may be asked for; raises SampleError `bad_url`.

    One of characters that a URL may have goes out as it is written: signed URLs do not survive another spelling. A
    user and a password are left out: what needs them was not published.
    """
    text = text.strip()
    if not text or len(text) > _LONGEST_URL or not text.isprintable():
        raise SampleError("bad_url", "empty, too long, or with control characters")
    try:
        url = URL(text, encoded=_PLAIN_URL.fullmatch(text) is not None)
        usable = url.scheme in ("http", "https") and _HOST.fullmatch(url.raw_host or "") and url.port is not None
        usable = bool(usable and url.host)  # decodes it, which not every host survives
        url = url.with_user(None) if usable and url.raw_authority.count("@") else url
    except (ValueError, LookupError) as error:
        raise SampleError("bad_url", "not a URL") from error
    if not usable:
        raise SampleError("bad_url", "not an http or https URL with a host")
    return url.with_fragment(None)


def _host(place: URL) -> str:
    return (place.raw_host or "").lower()


def _redirected(place: URL, answer: aiohttp.ClientResponse) -> URL:
    target = answer.headers.get("Location", "").strip()
    if not target:
        raise SampleError("bad_redirect", "a redirect to nowhere")
    try:
        joined = place.join(URL(target, encoded=_PLAIN_URL.fullmatch(target) is not None))
        return parsed_url(str(joined))
    except (SampleError, ValueError, LookupError) as error:
        raise SampleError("bad_redirect", "a redirect to what is no http or https URL") from error


def _retry_after_s(text: str) -> float:
    """Return the seconds of a Retry-After header (seconds, or a date), a day at most; 0 where there is none."""
    if _SECONDS.fullmatch(text.strip()):
        return min(float(text), _LONGEST_RETRY_AFTER_S)
    try:
        seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, LookupError, OverflowError):
        return 0.0
    return min(max(0.0, seconds), _LONGEST_RETRY_AFTER_S)


# What aiohttp raises on hostile answers; its own HttpProcessingError is no ClientError.
_BROKEN = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError, LookupError)


def _check_sockets(error: BaseException) -> None:
    """Raise RunError where this machine is at its limit: that says nothing of a host."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in _OUT_OF_SOCKETS:
            raise RunError(
                f"no more sockets ({errno.errorcode[cause.errno]}): raise the limit of open files (ulimit -n), or "
                "lower concurrency; run it again, it resumes"
            ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = getattr(error, "os_error", None) or error.__cause__


def _fault(error: BaseException) -> SampleError:
    """Say what became of a request, in words that are the same on every run."""
    inner = getattr(error, "os_error", None)
    if isinstance(inner, PrivateAddressError):
        return SampleError("private_address", "leads to an address that is not public (allow_private)")
    if isinstance(error.__cause__, ContentEncodingError):
        return SampleError("bad_response", "compressed in a way that it is not")
    for kinds, reason, message, transient in _FAULTS:
        if isinstance(error, kinds):
            if reason == "dns" and getattr(inner, "errno", None) in _UNKNOWN_NAME:
                return SampleError("dns", "no such host")
            return SampleError(reason, message, transient=transient)
    return SampleError("bad_response", type(error).__name__)


_FAULTS: Sequence[tuple[Any, str, str, bool]] = (  # the first that fits
    (TimeoutError, "timeout", "no answer in time", True),
    (aiohttp.ClientConnectorDNSError, "dns", "its host could not be looked up", True),
    (aiohttp.ClientSSLError, "tls", "no secure connection", False),
    ((aiohttp.InvalidURL, UnicodeError), "bad_url", "not a URL that can be asked for", False),
    (aiohttp.ClientConnectorError, "connect", "no connection to its host", True),
    (aiohttp.ClientPayloadError, "incomplete", "the answer ended early", True),
    ((aiohttp.ClientConnectionError, OSError), "reset", "the connection broke", True),
)
