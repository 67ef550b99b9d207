"""Keeps keys out of recipes, and out of whatever a server says that is going to be stored or shown.

A recipe is copied into config files, logs and reports, so a key in it has leaked already: it is refused before
anything could show it, also by the message that refuses it. What servers say is trusted no more: error pages echo
headers, and addresses in them would make equal failures differ.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tokenmill.errors import RecipeError, RunError

_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_UNNAMED = re.compile(r"AKIA[A-Z0-9]{12,}|(?=.*[0-9])[A-Z0-9]{20,}")  # a key of upper case alone
_KEY = re.compile(
    r"(?i:\b(?:Bearer|Basic) +\S+)|\bsk-(?=[\w-]*[0-9])[\w-]{16,}|\bhf_[A-Za-z0-9]{30,}"
    r"|\b(?:gsk_|xai-|pplx-|r8_|nvapi-|ghp_|github_pat_|glpat-|fw_|csk-)[\w-]{16,}|\bAKIA[A-Z0-9]{12,}|\bAIza[\w-]{20,}"
)
_RANDOM = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9_+/=-]{32,}")
_SECRET_NAME = re.compile(  # of a name's letters
    "(x?api|access|subscription)?key|(proxy)?authorization|auth|(x?auth|access)?token|bearer|(client)?secret|passw(or)?d"
    "|cookie|credentials?|sig(nature)?"
)
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://\S+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?|\b0x[0-9a-f]+|(?<![\w/])/[\w./-]+")
_ID = re.compile(r"\b(?:req|chatcmpl|cmpl)[-_][\w-]+|\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE)
_LONGEST_CHARS = 200


def refuse_secrets(settings: Mapping[str, Any]) -> None:
    """Raise RecipeError where a setting looks like a key or holds a password; the message never shows it."""
    if settings.get("api_key_env") is not None and not _is_variable(settings["api_key_env"]):
        raise _refused("api_key_env", "must name an environment variable, such as OPENAI_API_KEY (A-Z, 0-9, _)")
    for place, name, value in _leaves({key: value for key, value in settings.items() if key != "api_key_env"}):
        if _names_secret(name) and value not in (None, ""):
            raise _refused(place, "would hold a key")
        if isinstance(value, str) and _looks_secret(value, place):
            raise _refused(place, "looks like a key or holds a password")


def _is_variable(value: Any) -> bool:
    return isinstance(value, str) and bool(_VARIABLE.fullmatch(value)) and not _UNNAMED.fullmatch(value)


def _refused(place: str, why: str) -> RecipeError:
    return RecipeError(
        f"captioner 'openai': {place} {why}; keys do not belong in a recipe: put the key into an environment variable "
        "and that variable's name under api_key_env"
    )


def _leaves(value: Any, place: str = "", name: str = "") -> Iterator[tuple[str, str, Any]]:
    if isinstance(value, Mapping):
        for key, one in value.items():
            if _looks_secret(str(key), place):
                raise _refused(f"a name in {place}" if place else "the name of a setting", "looks like a key")
            yield from _leaves(one, f"{place}.{key}".strip("."), str(key))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one, place, name)
    else:
        yield place, name, value


def _looks_secret(value: str, place: str) -> bool:
    if "://" in value or place == "base_urls":
        return _url_holds_secret(value)
    if _KEY.search(value):
        return True
    return place.startswith("headers") and bool(_RANDOM.fullmatch(value))


def _url_holds_secret(value: str) -> bool:
    try:
        parts = urlsplit(value)
    except ValueError:
        return "@" in value
    is_queried = any(_names_secret(name) for name, _ in parse_qsl(parts.query))
    return "@" in parts.netloc or bool(_KEY.search(value)) or is_queried


def _names_secret(name: str) -> bool:
    return bool(_SECRET_NAME.fullmatch(re.sub(r"[^a-z]", "", name.lower())))


def key_from(variable: str | None) -> str:
    """Return the key in an environment variable, empty if none is named; raises RunError that doesn't show it."""
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise RunError(f"the environment variable {variable} (api_key_env) is not set here, where requests are made")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise RunError(f"what the environment variable {variable} (api_key_env) holds cannot be a key")
    return key


def told(message: Any, key: str = "") -> str:
    """Return what a server says fit to be stored: one line without keys, addresses, paths and numbers of requests."""
    text = message if isinstance(message, str) else ""
    if key:
        text = text.replace(key, "…")
    text = _KEY.sub("…", text[:4000])
    for pattern in (_ADDRESS, _ID):
        text = pattern.sub("…", text)
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= _LONGEST_CHARS else text[: _LONGEST_CHARS - 1] + "…"
