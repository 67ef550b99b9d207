"""From votes to pairs: of what was drawn for one prompt the best against the worst (EMU3.md §5).

Emu3 draws 8 to 10 pictures a prompt and keeps two. The order of equal votes is that in which they were drawn, so the
same votes make the same pairs.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from tokenmill.errors import RecipeError, SampleError
from tokenmill.generate.pictures import parse_pictures
from tokenmill.pipelines.pair_samples import AnswerTokens, TokenPair
from tokenmill.tokenize.vocabulary import Vocabulary


def count_votes(rows: Iterable[Mapping[str, Any] | SampleError], where: str) -> dict[str, float]:
    """Add up the votes of each file; several rows of one file are several judges.

    Raises RecipeError for a row without `file` and a number as `votes`.
    """
    votes: dict[str, float] = defaultdict(float)
    for number, row in enumerate(rows):
        if isinstance(row, SampleError):
            raise RecipeError(f"--votes {where}: row {number}: {row}")
        try:
            number_of_votes = float(row["votes"])
            if not math.isfinite(number_of_votes):
                raise ValueError("not a number")
            votes[str(row["file"]).rsplit("/", 1)[-1]] += number_of_votes
        except (KeyError, TypeError, ValueError) as error:
            told = "needs file, a picture's name, and votes, a number"
            raise RecipeError(f"--votes {where}: row {number} {told}") from error
    return dict(votes)


def voted_pairs(
    drawn: pl.DataFrame, votes: Mapping[str, float], vocabulary: Vocabulary
) -> tuple[list[TokenPair], Counter[str]]:
    """Make a pair of the best and worst that were drawn for one prompt and size; counts those without one by reason.

    Reasons: `unvoted` (less than two of its pictures have votes), `tie` (best and worst have equally many). Raises
    RecipeError for votes of a file that was not drawn.
    """
    check_files(votes, drawn["file"].to_list())
    return paired(drawn, votes, vocabulary)


def check_files(votes: Mapping[str, float], files: Sequence[str]) -> None:
    """Refuse votes of a file that was not drawn; raises RecipeError."""
    strange = sorted(set(votes) - set(files))
    if strange:
        raise RecipeError(f"--votes: {strange[0]} is none of the {len(files)} pictures that were drawn")


def paired(
    drawn: pl.DataFrame, votes: Mapping[str, float], vocabulary: Vocabulary, first: int = 0
) -> tuple[list[TokenPair], Counter[str]]:
    """Do as `voted_pairs` with some of what was drawn; pairs are numbered from `first` on.

    Where rows have a `number` (of the prompt in its table), those of one number alone are compared.
    """
    pairs: list[TokenPair] = []
    left_out: Counter[str] = Counter()
    asked: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for row in drawn.iter_rows(named=True):
        prompt = row["ids"][: row["ids"].index(vocabulary.sot)]
        asked.setdefault((row.get("number", 0), *prompt), []).append(row)
    for rows in asked.values():
        judged = [(votes[row["file"]], row) for row in rows if row["file"] in votes]
        if len(judged) < 2:
            left_out["unvoted"] += 1
            continue
        (most, best), (least, worst) = max(judged, key=_votes), min(judged, key=_votes)
        if most == least:
            left_out["tie"] += 1
            continue
        about = {"prompt": best["prompt"], "files": [best["file"], worst["file"]], "votes": [most, least]}
        about |= {"prompt_key": best["prompt_key"]} if "prompt_key" in best else {}
        pairs.append(drawn_pair(f"{first + len(pairs):06d}", best["ids"], worst["ids"], vocabulary, about))
    return pairs, left_out


def drawn_pair(
    key: str, chosen: Sequence[int], rejected: Sequence[int], vocabulary: Vocabulary, about: Mapping[str, Any]
) -> TokenPair:
    """Make a pair of two drawn documents, `BOS prompt SOV … EOV EOS`: the ids are theirs, nothing is encoded anew."""
    prompt = np.asarray(chosen[1 : list(chosen).index(vocabulary.sov)], np.uint32)
    answers = []
    for ids in (chosen, rejected):
        (picture,) = parse_pictures(np.asarray(ids, np.int32), vocabulary)
        answers.append(AnswerTokens(codes_thw=picture.codes_thw, fps=picture.fps, seconds=picture.seconds))
    return TokenPair(key=key, prompt=prompt, chosen=answers[0], rejected=answers[1], about=about)


def _votes(judged: tuple[float, Mapping[str, Any]]) -> float:
    return judged[0]
