"""What a server of chat completions may do to a request: the answers of chat_server.py, right and wrong.

`http_NNN` any status with an error as OpenAI words it · `timeout` nothing is ever said · `reset`, `reset_in_answer` the
connection is cut, at once or in mid-answer · `invalid_json` · `html` an error page with 200 · `html_502` ·
`garbage` what is not HTTP · `bomb` 50 MB in 50 kB of gzip · `no_choices` · `empty_content` · `huge` a caption of 2 MB ·
`refusal` · `content_filter` · `no_pictures` a 400 of a model that takes none · `loading` a 503 that says so ·
`echo_key` an error that shows the key · `redirect:URL`.
"""

from __future__ import annotations

import contextlib
import email.utils
import gzip
import json
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PHRASES = {200: "OK", 307: "Temporary Redirect", 429: "Too Many Requests", 502: "Bad Gateway", 503: "Unavailable"}
_PAGE = b"<!DOCTYPE html><html><head><title>Bad Gateway</title></head><body><h1>nginx</h1></body></html>"
_KINDS = (
    "ok",
    "timeout",
    "reset",
    "reset_in_answer",
    "invalid_json",
    "html",
    "html_502",
    "no_choices",
    "empty_content",
)
_KINDS += ("garbage", "bomb", "huge", "refusal", "content_filter", "no_pictures", "loading", "echo_key", "redirect")


@dataclass(frozen=True)
class Reply:
    """Bytes to send, and what follows: nothing, `reset` or `hang`."""

    data: bytes
    then: str = ""


def known(kind: str) -> None:
    """Raise ValueError for what is no fault."""
    name = kind.partition(":")[0]
    if name not in _KINDS and not (name.startswith("http_") and name[5:].isdigit()):
        raise ValueError(f"no such fault: {kind}; there are http_NNN, {', '.join(_KINDS)}")


def faulty_reply(kind: str, body: Mapping[str, Any], *, authorization: str = "", retry_after: str = "") -> Reply:
    """Return what a request gets that meets a fault."""
    name, _, rest = kind.partition(":")
    if name in ("timeout", "reset"):
        return Reply(b"", "hang" if name == "timeout" else "reset")
    if name == "reset_in_answer":
        whole = json_reply(200, completion(body, "A caption that breaks off")).data
        return Reply(whole[: len(whole) // 2], "reset")
    if name == "redirect":
        return http_reply(307, b"", "text/plain", f"Location: {rest}")
    if name == "echo_key":
        return error(500, f"cannot do that; Authorization: {authorization}, the key being {authorization[7:]}")
    if name in ("html", "html_502", "invalid_json"):
        data = b'{"choices": [{"mess' if name == "invalid_json" else _PAGE
        return http_reply(502 if name == "html_502" else 200, data, "text/html")
    if name == "garbage":
        return Reply(b"\x00\x01 220 mail.example ESMTP\r\n\r\n")
    if name == "bomb":
        return http_reply(200, gzip.compress(bytes(50_000_000)), "application/json", "Content-Encoding: gzip")
    if name == "no_pictures":
        return error(400, "At most 0 image(s) may be provided in one prompt: the model does not support image input")
    if name == "loading":
        return error(503, "Loading model")
    if name.startswith("http_"):
        return error(int(name[5:]), "The server errs as it was told", retry_after=retry_after)
    return json_reply(200, _odd_completion(name, body))


def _odd_completion(kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
    answer = completion(body, "")
    message = answer["choices"][0]["message"]
    if kind == "no_choices":
        answer["choices"] = []
    elif kind == "huge":
        message["content"] = "a word " * 300_000
    elif kind == "refusal":
        message.update(content=None, refusal="I'm sorry, but I can't help with that.")
    elif kind == "content_filter":
        answer["choices"][0]["finish_reason"] = "content_filter"
    return answer


def completion(body: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return an answer as OpenAI's reference has it; tokens are words, and 100 a picture."""
    parts = [part for message in body["messages"] for part in _parts(message["content"])]
    num_input = sum(100 if part["type"] == "image_url" else len(part["text"].split()) for part in parts)
    num_output = len(text.split())
    usage = {"prompt_tokens": num_input, "completion_tokens": num_output, "total_tokens": num_input + num_output}
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": body.get("model"),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": usage,
    }


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def error(status: int, message: str, *, code: str | None = None, retry_after: str = "") -> Reply:
    """Return an error as OpenAI words it."""
    if retry_after == "date":
        retry_after = email.utils.formatdate(time.time() + 2, usegmt=True)
    headers = [f"Retry-After: {retry_after}"] if retry_after and status in (429, 503) else []
    return json_reply(status, {"error": {"message": message, "type": "error", "code": code}}, *headers)


def json_reply(status: int, value: Any, *headers: str) -> Reply:
    return http_reply(status, json.dumps(value).encode(), "application/json", *headers)


def http_reply(status: int, data: bytes, media_type: str, *headers: str) -> Reply:
    lines = [f"HTTP/1.1 {status} {_PHRASES.get(status, 'Other')}", f"Content-Type: {media_type}", *headers]
    return Reply("\r\n".join([*lines, f"Content-Length: {len(data)}", "\r\n"]).encode() + data)


def reset(transport: Any) -> None:
    """Cut a connection so that the other side sees a TCP reset."""
    with contextlib.suppress(OSError, AttributeError):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
