"""What can be wrong with the captions of a recipe: found before anything starts, without a model, a server or Ray."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import ValidationError

from tokenmill.captions.checks import check_settings
from tokenmill.captions.prompts import check_template
from tokenmill.errors import RecipeError
from tokenmill.manifests.identity import digest_of
from tokenmill.pipelines.captioning import CAPTIONED
from tokenmill.pipelines.questions import Asking
from tokenmill.settings_caption import CaptionColumn, CaptionSettings

if TYPE_CHECKING:
    from tokenmill.pipelines.chain import Chain

_ONLY = {"caption"}  # what a recipe without named columns calls its one
_NEED_PROMPTS = ("openai", "vllm")  # a plug-in that does has an attribute `needs_prompt`


def check_captions(chain: Chain) -> None:
    """Check the columns of every modality; raises RecipeError that begins with the key path."""
    for modality, captions in chain.recipe.caption.items():
        where = f"caption.{modality}"
        if modality not in CAPTIONED:
            raise RecipeError(f"{where}: a {modality} is its own caption; allowed: {', '.join(CAPTIONED)}")
        for name, column in captions.columns.items():
            _check_column(
                chain, modality, column, where if set(captions.columns) == _ONLY else f"{where}.columns.{name}"
            )
        for source in chain.sources_of(modality):
            _check_different(captions, modality, source, where)


def _check_column(chain: Chain, modality: str, column: CaptionColumn, where: str) -> None:
    _check_asked(column, modality, "", where)
    for source in column.sources:
        if chain.modality.get(source) != modality:
            allowed = ", ".join(chain.sources_of(modality)) or "none"
            raise RecipeError(f"{where}.sources.{source}: no {modality} source of that name; allowed: {allowed}")
        _check_asked(column, modality, source, f"{where}.sources.{source}")


def _check_asked(column: CaptionColumn, modality: str, source: str, where: str) -> None:
    """Build a column as a source has it (the engine loads and connects nothing) and read its prompts."""
    try:
        asking = Asking.of(column, modality, source)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise RecipeError(f"{where}: {told}") from error
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error
    if (check := getattr(asking.captioner, "check", None)) is not None:
        _within(where, check)
    for number, template in enumerate(asking.column.prompt):
        part = f".{number}" if len(asking.column.prompt) > 1 else ""
        _within(f"{where}.prompt{part}", lambda template=template: check_template(template))  # type: ignore[misc]
    _within(f"{where}.system", lambda: check_template(asking.column.system))
    _within(f"{where}.checks", lambda: check_settings(asking.column.checks))
    if not any(template.strip() for template in asking.column.prompt):
        _within(f"{where}.prompt", lambda: _check_unasked(asking))


def _check_unasked(asking: Asking) -> None:
    """Refuse to ask nothing where that makes no caption; only then may a model's files be looked at for it."""
    engine = asking.column.engine
    if getattr(asking.captioner, "needs_prompt", engine in _NEED_PROMPTS):
        raise RecipeError(f"engine {engine} has to be asked something")


def _check_different(captions: CaptionSettings, modality: str, source: str, where: str) -> None:
    """Refuse columns that are one on disk: what is asked once is answered once."""
    alike: dict[str, list[tuple[str, Asking]]] = defaultdict(list)
    for name, column in captions.columns.items():
        asking = Asking.of(column, modality, source)
        alike[digest_of(asking.identity)].append((name, asking))
    for some in alike.values():
        if len(some) < 2:
            continue  # a fingerprint may be dear: weights are read for it
        seen: dict[str, str] = {}
        for name, asking in some:
            other = seen.setdefault(asking.captioner.fingerprint, name)
            if other != name:
                raise RecipeError(
                    f"{where}.columns.{name}: asks the same as column {other} about source {source}; leave one out, or "
                    "give it another prompt or seed"
                )


def _within(where: str, check: Callable[[], object]) -> None:
    try:
        check()
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error
