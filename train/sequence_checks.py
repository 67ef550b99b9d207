"""Which numbers of ranks can share a sequence; without torch, so that the launcher asks before it starts any."""

from __future__ import annotations

from tokenmill.errors import RecipeError


def check_ranks(size: int, ranks: int) -> None:
    """Raise RecipeError unless groups of `size` ranks make up all ranks."""
    if ranks % size:
        raise RecipeError(
            f"train.sequence_parallel: groups of {size} ranks do not make up {ranks} ranks; "
            f"set train.ranks (times the number of nodes) to a multiple of {size}"
        )


def check_heads(size: int, heads: int) -> None:
    """Raise RecipeError unless every rank of a group gets as many heads of the model."""
    if heads % size:
        raise RecipeError(
            f"train.sequence_parallel: {size} ranks cannot share the {heads} attention heads of train.model evenly; "
            f"{size} has to divide {heads}"
        )
