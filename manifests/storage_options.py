"""What a recipe's `storage` may hold, read once for every backend.

The documented keys mean the same for every store and library; the rest is credentials and settings that go to the
library under its own names. Values are never shown: an error names the key alone, and the repr hides them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenmill.errors import RecipeError

# What s3fs calls the same things: recipes written for it go on working.
_ALIASES = {"endpoint_url": "endpoint", "region_name": "region", "anon": "anonymous"}
# Credentials for S3, s3fs's name → obstore's.
S3_CREDENTIALS = {"key": "access_key_id", "secret": "secret_access_key", "token": "session_token"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageOptions:
    """How to reach a store. An operation ends, well or not, within `retry_timeout_s + timeout_s`."""

    backend: str = "auto"
    endpoint: str | None = field(default=None, repr=False)
    region: str | None = None
    anonymous: bool = False
    profile: str | None = None
    timeout_s: float = 20.0  # a request may stand still for
    retries: int = 20  # of one operation, at most
    retry_timeout_s: float = 60.0  # no retry begins later than that after the first try
    conditional_put: str = "auto"
    library: Mapping[str, Any] = field(default_factory=dict, repr=False)


def _one_of(*allowed: str) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value in allowed), " or ".join(allowed)


def _number(least: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value >= least


_TEXT: tuple[Callable[[Any], bool], str] = (lambda value: isinstance(value, str) and bool(value)), "a text"
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "backend": _one_of("auto", "obstore", "fsspec"),
    "endpoint": ((lambda value: isinstance(value, str) and "://" in value), "a URL such as https://host:port"),
    "region": _TEXT,
    "anonymous": ((lambda value: isinstance(value, bool)), "true or false"),
    "profile": _TEXT,
    "timeout_s": (_number(0.1), "seconds, at least 0.1"),
    "retries": ((lambda value: _number(0)(value) and isinstance(value, int)), "a whole number, at least 0"),
    "retry_timeout_s": (_number(0), "seconds, at least 0"),
    "conditional_put": _one_of("auto", "off"),
}
DOCUMENTED = tuple(_RULES)


def parse_options(options: Mapping[str, Any] | None) -> StorageOptions:
    """Read a mapping of options; raises RecipeError that names the key and what is allowed, never a value."""
    given: dict[str, Any] = {}
    for key, found in (options or {}).items():
        if key == "client_kwargs" and isinstance(found, Mapping):
            given |= {_ALIASES.get(str(inner), str(inner)): value for inner, value in found.items()}
        elif found is not None:
            plain = "off" if found is False and key == "conditional_put" else found  # YAML reads a bare off as false
            given[_ALIASES.get(key, key)] = plain
    for key, (holds, allowed) in _RULES.items():
        if key in given and not holds(given[key]):
            raise RecipeError(f"storage.{key}: has to be {allowed}")
    library = {key: found for key, found in given.items() if key not in _RULES}
    return StorageOptions(**{key: found for key, found in given.items() if key in _RULES}, library=library)


def unknown_option(key: str, protocol: str, library: str) -> RecipeError:
    """Return the error for an option that neither tokenmill nor the library knows."""
    documented = ", ".join(DOCUMENTED)
    return RecipeError(f"storage.{key}: no such option of {library} for {protocol}://; documented: {documented}")
