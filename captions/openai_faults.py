"""What may come instead of an answer, and what follows from it.

    again        another try may do better: time-outs, resets, 408 409 425 429 5xx, what is no JSON, no choices
    unreachable  no connection was made: the server is left out until it answers again, and no try is spent
    stop         nothing can work: wrong key, wrong model, a model without eyes, no credit, a redirect

What a server refuses about one request alone (400, 413, 422) is an answer: the sample's error (`Reply.error`).
Everything here is a value; none is raised from an exception of aiohttp's, whose repr shows the key.
"""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokenmill.captions.openai_secrets import told
from tokenmill.captions.openai_wire import BrokenAnswer, Reply, as_object, read_answer
from tokenmill.errors import SampleError

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
_NEVER = (501, 505)  # not implemented, and it won't be by the next try
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
_BLIND = re.compile(
    r"at most 0 image|not a multi-?modal model|image input is not supported|image_url is only supported by certain"
    r"|(?:not|n't|that) support(?:s|ed|ing)? (?:\w+ ){0,2}(?:images?|vision|multi-?modal)"
    r"(?: inputs?| content| data)?\s*(?:[.,;!'\"]|$)",  # "does not support images smaller than …" is another matter
    re.IGNORECASE,
)
_NOT_YET = re.compile("loading|starting|warming up|not ready|overloaded", re.IGNORECASE)  # with 503: llama.cpp's words


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a request has no answer yet.

    Attributes:
        reason: counted: http_NNN, timeout, reset, unreachable, invalid_answer, empty_answer.
        message: fit to be stored.
        costs_try: False where the server said to come later.
        retry_after_s: how long its server wants to be left alone.
    """

    reason: str
    message: str
    effect: Literal["again", "unreachable", "stop"] = "again"
    costs_try: bool = True
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """What is known about who asks, for what errors say and must not say."""

    key: str
    key_variable: str | None
    model: str


def outcome_of(
    status: int, headers: Mapping[str, str], data: bytes, asker: Asker, *, has_worked: bool, may_be_blind: bool
) -> Reply | Fault:
    """Judge a whole HTTP answer of a server that `has_worked` before, and may or may not take pictures."""
    if status < 300:
        try:
            return read_answer(data)
        except BrokenAnswer as error:
            broken = Fault(reason=error.reason, message=error.message)
        status = _status_inside(data)  # gateways put an error of theirs into a 200
        if not status:
            return broken
    code, message = _error_in(data)
    said = told(message, asker.key)
    if may_be_blind and _BLIND.search(message):
        blind = f"the model {asker.model!r} takes no pictures ({said}); ask a vision model, or set pictures: false"
        return Fault(reason=f"http_{status}", message=blind, effect="stop")
    if stop := _hopeless(status, headers, code, said, asker, has_worked):
        return Fault(reason=f"http_{status}", message=stop, effect="stop")
    if "content_filter" in code or "content_policy" in code:
        return Reply(error=SampleError("content_filter", said or "the server's filter refused the request"))
    is_passing = status in _AGAIN or (status >= 500 and status not in _NEVER)
    if is_passing and "request too large" not in message.lower():  # which some say by a 429 that never ends
        return _again(status, headers, said)
    return Reply(error=SampleError("refused_by_server", f"{status}: {said}" if said else f"{status}"))


def _again(status: int, headers: Mapping[str, str], said: str) -> Fault:
    retry_after_s = seconds_of(headers.get("Retry-After"))
    is_later = status == 429 or retry_after_s is not None or (status == 503 and bool(_NOT_YET.search(said)))
    return Fault(
        reason=f"http_{status}" if status in _AGAIN else "http_5xx",
        message=f"the server answered {status}{': ' + said if said else ''}",
        costs_try=not is_later,
        retry_after_s=retry_after_s,
    )


def _hopeless(status: int, headers: Mapping[str, str], code: str, said: str, asker: Asker, has_worked: bool) -> str:
    """Say why no request at all can work, or nothing."""
    if 300 <= status < 400:
        return f"it redirects ({status}) to {_host(headers.get('Location', ''))}; requests are not sent on with a key"
    if status == 402 or code in _NO_CREDIT:
        return f"the account has no credit left ({status}): {said}"
    if status == 401 or (status == 403 and not has_worked):
        return f"it refused the key ({status}); {_about_key(asker)}"
    if status == 404 or code == "model_not_found":
        return f"it knows no model {asker.model!r} there ({status}): {said}"
    if status in (405, 410):
        return f"it takes no chat completions there ({status}): {said}"
    return ""


def _about_key(asker: Asker) -> str:
    if asker.key_variable:
        return f"look at the environment variable {asker.key_variable} (api_key_env)"
    return "no key was sent: name the environment variable that holds it under api_key_env"


def seconds_of(retry_after: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number, or a date of HTTP's; None if neither."""
    if not retry_after:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _status_inside(data: bytes) -> int:
    try:
        error = as_object(data).get("error")
    except BrokenAnswer:
        return 0
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 300 <= code < 600 else 0


def _error_in(data: bytes) -> tuple[str, str]:
    """Return an error's code and message in the ways servers write them; both empty where it is none."""
    try:
        body = as_object(data)
    except BrokenAnswer:
        return "", ""
    error: Any = body.get("error", body)
    if not isinstance(error, dict):
        return "", str(error)
    code = next((error[name] for name in ("code", "type") if isinstance(error.get(name), str)), "")
    message = next((error[name] for name in ("message", "detail") if error.get(name)), "")
    return code, message if isinstance(message, str) else str(message)


def _host(location: str) -> str:
    found = re.match(r"https?://(?:[^/@]*@)?([A-Za-z0-9.:-]+)", location)
    return found[1] if found else "another path"
