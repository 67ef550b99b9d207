"""A faulty proxy that remembers what was asked of the store: to tell listings from readings, and count both."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from tests.faulty_proxy import FaultyProxy, Message


class RecordingProxy(FaultyProxy):
    """`asked` holds (method, path, names in the query) of every request so far."""

    def __enter__(self) -> RecordingProxy:
        self.asked: list[tuple[str, str, set[str]]] = []
        super().__enter__()
        return self

    def _fault(self, request: Message) -> str:
        parts = urlsplit(request.target)
        self.asked.append((request.method, parts.path, set(parse_qs(parts.query, keep_blank_values=True))))
        return super()._fault(request)

    def reads(self, ending: str) -> list[str]:
        """Return the paths that were read, those with this ending."""
        return [path for method, path, _ in self.asked if method == "GET" and path.endswith(ending)]

    @property
    def listings(self) -> list[str]:
        """Return the paths of requests that list: of a bucket, or with a query that asks for names."""
        listing = {"list-type", "prefix", "delimiter", "uploads"}
        return [
            path
            for method, path, query in self.asked
            if method == "GET" and (query & listing or path.strip("/").count("/") == 0)
        ]
