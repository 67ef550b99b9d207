"""The captioner that asks servers: anything that speaks OpenAI's chat completions.

An event loop in a second thread does the talking, so what is on the wire goes on while the caller decodes the next
pictures or writes the last answers. No more than `concurrency` + `ahead` requests are pulled and not yet stored: that
bounds memory (their pictures) and what a kill loses. With `ahead: 0` a place idles while its answer is stored: 10 % of
the requests/s at 256 places, answers after 200 ms and 10 ms a batch; with the default none (docs/captions.md).
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from tokenmill.captions.captioner import Answer, Request, Takes
from tokenmill.captions.openai_secrets import key_from, refuse_secrets
from tokenmill.captions.openai_wire import QuestionWriter
from tokenmill.errors import RunError
from tokenmill.manifests.identity import digest_of

if TYPE_CHECKING:
    from tokenmill.captions.openai_asking import Asking

_OURS = ("model", "messages", "seed", "stream", "n")
_HEADER = re.compile(r"(?!(?:host|connection|content-.*|transfer-encoding|accept-encoding)$)[a-z0-9-]+", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class OpenAICaptioner:
    """Asks for chat completions; `model` and what is sent along decide about answers, all else only about speed.

    Args:
        model: as the server calls it.
        base_urls: one or several, each up to and with `/v1`; a request goes to the least busy one that works.
        api_key_env: the environment variable, where requests are made, that holds the key; null: none is sent.
        pictures: show the picture or the clip's frames; false: only words are sent.
        max_side_px: larger pictures are shrunk before; null: as they are.
        detail: `low`, `high` or `auto`, where servers know it.
        max_tokens: of an answer; null leaves it out (and `extra: {max_completion_tokens: …}` may say it).
        temperature, top_p: null leaves them to the server.
        send_seed: send each request's seed, modulo 2^31; for servers that refuse to be told one.
        extra: further keys of the request's body, such as `chat_template_kwargs` or `response_format`.
        headers: plain ones to send along; never a key.
        concurrency: requests on the wire at a time, of each worker process.
        ahead: requests pulled beside those: waiting for a place, or answered and being stored; null: a quarter as many.
        timeout_s: for one try.
        tries: of one request, until it fails for the last fault's reason.
        outage_s: without an answer from any server, until the run ends.
        max_answer_bytes: longer answers are not read to their end.
    """

    model: Annotated[str, Field(min_length=1)]
    base_urls: Annotated[tuple[str, ...], Field(min_length=1)]
    api_key_env: str | None = None
    pictures: bool = True
    max_side_px: Annotated[int, Field(ge=16)] | None = 1024
    detail: Literal["low", "high", "auto"] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = 512
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    send_seed: bool = True
    extra: dict[str, Any] = Field(default_factory=dict)
    headers: dict[str, str] = Field(default_factory=dict)
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 64
    ahead: Annotated[int, Field(ge=0)] | None = None
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    tries: Annotated[int, Field(ge=1)] = 8
    outage_s: Annotated[float, Field(gt=0)] = 600.0
    max_answer_bytes: Annotated[int, Field(ge=1000)] = 1_000_000

    name: ClassVar = "openai"
    version: ClassVar = 1
    asks: ClassVar = True

    @model_validator(mode="before")
    @classmethod
    def _no_secrets(cls, given: Any) -> Any:
        """Refuse keys before any other check: what fails those is shown."""
        settings = given.kwargs if isinstance(given, ArgsKwargs) else given
        refuse_secrets(settings or {})
        return given

    @field_validator("base_urls", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("base_urls")
    @classmethod
    def _urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment:
                raise ValueError("each must be http(s)://host[:port]/v1")
        return tuple(dict.fromkeys(url.rstrip("/") for url in urls))

    @field_validator("extra")
    @classmethod
    def _not_ours(cls, extra: dict[str, Any]) -> dict[str, Any]:
        for name in _OURS:
            if name in extra:
                raise ValueError(f"{name} is not for extra; the engine sets it")
        return extra

    @field_validator("headers")
    @classmethod
    def _sendable(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not _HEADER.fullmatch(name) or not (value.isascii() and value.isprintable()):
                raise ValueError(f"{name!r} is no header to set, or not one line of ASCII")
        return headers

    @property
    def takes(self) -> Takes:
        return "encoded" if self.pictures else "text"

    @property
    def fingerprint(self) -> str:
        return digest_of({"name": self.name, "version": self.version, "body": self._common, **self._views})

    @property
    def _common(self) -> dict[str, Any]:
        """What every request says."""
        sampling = {"max_tokens": self.max_tokens, "temperature": self.temperature, "top_p": self.top_p}
        said = {name: value for name, value in sampling.items() if value is not None}
        return {"model": self.model, **said, **self.extra}

    @property
    def _views(self) -> Mapping[str, Any]:
        eyes = {"max_side_px": self.max_side_px, "detail": self.detail} if self.pictures else {}
        return {"pictures": self.pictures, "send_seed": self.send_seed, **eyes}

    def answers(self, requests: Iterable[Request]) -> Iterator[Sequence[Answer]]:
        """Ask `concurrency` at a time; see `Captioner.answers`."""
        ahead = -(-self.concurrency // 4) if self.ahead is None else self.ahead
        try:
            yield from self._asking.answers(requests, self.concurrency, ahead)
        except RunError:
            self.close()
            raise

    def close(self) -> None:
        """Hang up; requests under way are dropped."""
        asking = self.__dict__.pop("_asking", None)
        if asking is not None:
            asking.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_asking"}

    @cached_property
    def _asking(self) -> Asking:
        from tokenmill.captions.openai_asking import Asking
        from tokenmill.captions.openai_client import Client, Limits
        from tokenmill.captions.openai_faults import Asker

        asker = Asker(key=key_from(self.api_key_env), key_variable=self.api_key_env, model=self.model)
        limits = Limits(
            timeout_s=self.timeout_s, tries=self.tries, outage_s=self.outage_s, max_answer_bytes=self.max_answer_bytes
        )
        writer = QuestionWriter(self._common, detail=self.detail, sends_seed=self.send_seed)
        asking = Asking(Client(self.base_urls, dict(self.headers), asker, limits), writer)
        weakref.finalize(self, asking.close)  # also when the interpreter ends
        return asking
