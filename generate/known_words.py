"""How much of a text a vocabulary can tell: a script it lacks would be drawn as if nothing had been asked.

Byte-level vocabularies lack nothing. Others turn what they don't know into one unknown id, or drop it; so the text is
decoded again and its letters are looked for, whatever the tokenizer calls its unknown.
"""

from __future__ import annotations

import unicodedata

from tokenmill.errors import RecipeError
from tokenmill.tokenize.vocabulary import Vocabulary


def told_letters(vocabulary: Vocabulary, text: str) -> tuple[int, int]:
    """Return how many of a text's letters and digits the vocabulary tells, and how many there are."""
    told = _plain(vocabulary.text.decode(vocabulary.encode(text).tolist()))
    letters = [letter for letter in _plain(text) if letter.isalnum()]
    return sum(letter in told for letter in letters), len(letters)


def check_words(vocabulary: Vocabulary, text: str, what: str) -> str | None:
    """Return a note when some letters are lost, None when none are.

    Raises:
        RecipeError: naming `what`, when less than half of the letters are told, or the text gives no id at all.
    """
    known, letters = told_letters(vocabulary, text)
    if letters and known < letters:
        share = f"the vocabulary knows {known} of the {letters} letters of {what}"
        if 2 * known < letters:
            raise RecipeError(f"{share} {text[:40]!r}: it was trained on other scripts")
        return share
    if text.strip() and not len(vocabulary.encode(text)):
        raise RecipeError(f"the vocabulary has no id for {what} {text[:40]!r}")
    return None


def _plain(text: str) -> str:
    """Take case and accents off, which some tokenizers do as well."""
    return "".join(one for one in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(one))
