"""The demo's fourth source: JSONL text, English from Python's own manual pages, other scripts from django's catalogues.

Nothing is written by us: `pydoc_data.topics` gives some 300 pieces of 1,500 characters, the catalogues' complete
sentences (no placeholders, no markup) are put together by eights. Three lines of the last shard are spoiled on purpose.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenmill.demo.photographs import package_file
from tokenmill.demo.spoiled import Spoiled

NUM_SHARDS = 4
PIECE_CHARACTERS = 1500
SENTENCES_PER_DOCUMENT = 8
LANGUAGES: Mapping[str, str] = {
    "ar": "Arabic",
    "bn": "Bengali",
    "el": "Greek",
    "fa": "Persian",
    "he": "Hebrew",
    "hi": "Hindi",
    "ja": "Japanese",
    "ka": "Georgian",
    "ko": "Korean",
    "ru": "Russian",
    "th": "Thai",
    "uk": "Ukrainian",
    "zh_Hans": "Chinese, simplified",
    "zh_Hant": "Chinese, traditional",
}
_MARKUP = ("%", "{", "<", "\0", "\n", "_(")
_MO_MAGIC = 0x950412DE


def write_texts(folder: Path) -> list[Spoiled]:
    """Write the documents as JSON lines, dealt to `NUM_SHARDS` shards in turn, and the spoiled lines."""
    documents = [*english(), *other_scripts()]
    shards = [[_line(document) for document in documents[shard::NUM_SHARDS]] for shard in range(NUM_SHARDS)]
    last = f"part-{NUM_SHARDS - 1:05d}.jsonl"
    shards[-1], spoiled = _spoil(shards[-1], last)
    for shard, lines in enumerate(shards):
        (folder / f"part-{shard:05d}.jsonl").write_bytes(b"".join(lines))
    return spoiled


def english() -> Iterator[dict[str, Any]]:
    """Cut the topics of Python's `help()` into documents of whole paragraphs."""
    from pydoc_data.topics import topics

    for topic in sorted(topics):
        for number, text in enumerate(pieces(topics[topic])):
            title = f"Python help: {topic}"
            yield {
                "id": f"pydoc-{topic}-{number}",
                "text": text,
                "title": title,
                "language": "en",
                "licence": "PSF-2.0",
            }


def pieces(text: str, characters: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cut a text between paragraphs into pieces that end once they reach `characters`."""
    piece: list[str] = []
    for paragraph in text.strip().split("\n\n"):
        piece.append(paragraph)
        if sum(map(len, piece)) >= characters:
            yield "\n\n".join(piece)
            piece = []
    if piece:
        yield "\n\n".join(piece)


def other_scripts() -> Iterator[dict[str, Any]]:
    """Put the sentences of each language of django's catalogues together, `SENTENCES_PER_DOCUMENT` at a time."""
    for language, name in LANGUAGES.items():
        sentences, title = _sentences(language), f"Messages of django in {name}"
        for number, start in enumerate(range(0, len(sentences), SENTENCES_PER_DOCUMENT)):
            text = "\n".join(sentences[start : start + SENTENCES_PER_DOCUMENT])
            yield {
                "id": f"django-{language}-{number}",
                "text": text,
                "title": title,
                "language": language,
                "licence": "BSD-3-Clause",
            }


def _sentences(language: str) -> list[str]:
    """Collect a language's complete sentences from all catalogues of django, each once, in their order."""
    package = package_file("django", "__init__.py").parent
    catalogues = sorted(package.glob(f"**/locale/{language}/LC_MESSAGES/django.mo"), key=lambda path: path.as_posix())
    messages = (message for path in catalogues for message in read_catalogue(path.read_bytes()).values())
    return list(dict.fromkeys(message for message in messages if _is_sentence(message)))


def _is_sentence(message: str) -> bool:
    return len(message) >= 12 and not message.isascii() and not any(mark in message for mark in _MARKUP)


def read_catalogue(data: bytes) -> dict[str, str]:
    """Read a compiled gettext catalogue (.mo): message to translation, in the file's order."""
    order = "<" if struct.unpack("<I", data[:4])[0] == _MO_MAGIC else ">"
    count, originals, translations = struct.unpack(f"{order}III", data[8:20])

    def texts(table: int) -> Iterator[str]:
        for entry in range(count):
            length, offset = struct.unpack_from(f"{order}II", data, table + 8 * entry)
            yield data[offset : offset + length].decode("utf-8")

    return dict(zip(texts(originals), texts(translations), strict=True))


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode("utf-8") + b"\n"


def _spoil(lines: Iterable[bytes], file: str) -> tuple[list[bytes], list[Spoiled]]:
    """Put three bad lines between the good ones and name them by the offset of their first byte."""
    mixed = list(lines)
    latin = (
        '{"id": "spoiled-encoding", "text": "Gr\u00fc\u00dfe aus K\u00f6ln", "title": "", "licence": "Apache-2.0"}\n'
    )
    bad = (
        (2, latin.encode("latin-1"), "text in a broken encoding (Latin-1 bytes in UTF-8)", "bad_encoding"),
        (5, b'{"id": "spoiled-json", "text": "the line ends here, \n', "line that is not JSON", "bad_json"),
        (
            8,
            _line({"id": "spoiled-empty", "text": "", "title": "", "licence": "Apache-2.0"}),
            "empty text",
            "empty_text",
        ),
    )
    spoiled = []
    for index, line, what, hint in bad:
        mixed.insert(index, line)
        name = f"{file}#{sum(map(len, mixed[:index]))}"
        spoiled.append(Spoiled(source="text", name=name, what=what, expected="failed", expected_reason_hint=hint))
    return mixed, spoiled
