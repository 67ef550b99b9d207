"""Find a built-in or third-party factory by its name in the recipe.

Scorers, captioners, tokenizers and sources are all replaced the same way: a dictionary from names to
`module:attribute`, and one entry-point group a kind. Nothing is imported until a recipe names it, so the
command line stays quick. A built-in name always wins: installing a package can't change what a recipe means.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from tokenmill.errors import RecipeError

Factory = Callable[..., Any]


def allowed_names(built_in: Mapping[str, str], group: str) -> list[str]:
    """List every name a recipe may use: the built-in ones and those of installed packages."""
    return sorted({*built_in, *(point.name for point in entry_points(group=group))})


def find_factory(kind: str, name: str, built_in: Mapping[str, str], group: str) -> Factory:
    """Return the factory called `name`; raises RecipeError that lists what is allowed."""
    if name in built_in:
        module, _, attribute = built_in[name].partition(":")
        return _factory(getattr(importlib.import_module(module), attribute))
    for point in sorted(entry_points(group=group, name=name), key=lambda point: point.value):
        return _factory(point.load())
    raise RecipeError(f"unknown {kind} {name!r}; allowed: {', '.join(allowed_names(built_in, group))}")


def build(kind: str, name: str, settings: Mapping[str, Any], built_in: Mapping[str, str], group: str) -> Any:
    """Build `name` with the recipe's `settings` as keywords; raises RecipeError for a setting it can't take."""
    factory = find_factory(kind, name, built_in, group)
    known = _settings_of(factory)
    unknown = sorted(set(settings) - known) if known is not None else []
    if unknown:
        allowed = ", ".join(sorted(known or ())) or "none"
        raise RecipeError(f"{kind} {name!r}: unknown setting {unknown[0]!r}; allowed: {allowed}")
    try:
        return factory(**settings)
    except (TypeError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        raise RecipeError(f"{kind} {name!r}: {_why(error)}") from error


def _factory(found: Any) -> Factory:
    if not callable(found):
        raise RecipeError(f"{found!r} is registered as a plug-in but can't be called")
    return found  # type: ignore[no-any-return]


def _settings_of(factory: Factory) -> set[str] | None:
    """Name the keywords a factory takes; None when it takes any."""
    parameters = inspect.signature(factory).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}


def _why(error: Exception) -> str:
    details = getattr(error, "errors", None)
    if not callable(details):
        return " ".join(str(error).split())
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}, found {item['input']!r}" for item in details())
