"""What of an answer is the caption: without the model's thoughts, its "Here is a caption:", quotes and code fences.

Line breaks are kept, at most one empty line in a row: a dense caption's paragraphs and lists mean something. All other
white space becomes single spaces. Only what frames the whole answer goes; the words inside are left as they are. A
caption of 100 words takes 10 µs.
"""

from __future__ import annotations

import re

_ROUNDS = 8  # frames within frames
_UNFIT = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufeff\u202a-\u202e\u2066-\u2069]")
_EMPTY_LINES = re.compile(r"\n{3,}")

_THOUGHTS = re.compile(r"<(think|thinking|thought|reasoning)>.*?(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_LONGEST_MARK = 40
_END_MARK = re.compile(r"(?:<\|\w{1,32}\|>|</s>|<eos>|<end_of_turn>)\Z")  # of the model's turn, left by some servers
_FENCE = re.compile(r"```[\w+-]*\n(?P<inside>.*?)\n?```", re.DOTALL)
_QUOTES = {
    '"': '"',
    "'": "'",
    "“": "”",
    "„": "“",
    "‘": "’",
    "«": "»",
    "»": "«",
    "「": "」",
    "『": "』",
    "`": "`",
    "*": "*",
    "_": "_",
}

_COURTESY = r"(?:(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|great|gladly)[!,.]+ ?)"
_NOUN = (
    r"(?:captions?|descriptions?|alt[- ]?text|summary|sentence|paragraph|prompt|version|rewrite|rewording|"
    r"rephrasing|translation|answer|response)"
)
_HERE = r"(?:here(?:'s|’s| is| are)|below is|the following is)"
_ENGLISH = rf"{_COURTESY}*{_HERE} [^:\n]{{0,80}}?\b{_NOUN}\b[^:\n]{{0,80}}:"
_OTHERS = (
    r"(?:好的|当然|當然|没问题|沒問題)?[，,！!。]? ?(?:以下|下面)(?:是|为|為)[^:：\n]{0,40}"
    r"(?:描述|说明|說明|标题|標題|字幕)[^:：\n]{0,20}[:：]"
    r"|(?:はい、?)?(?:以下|こちら)(?:は|が)[^:：\n。]{0,40}(?:説明|キャプション)[^:：\n。]{0,20}[:：]"
    r"|(?:gerne[!,.] ?)?hier ist [^:\n]{0,60}?(?:beschreibung|bildunterschrift)[^:\n]{0,40}:"
    r"|(?:bien sûr[ !,.]* ?)?voici [^:\n]{0,60}?(?:description|légende)[^:\n]{0,40}:"
    r"|(?:¡?(?:claro|por supuesto)[!,.]* ?)?aquí (?:tienes|está) "
    r"[^:\n]{0,60}?(?:descripción|leyenda)[^:\n]{0,40}:"
    r"|(?:конечно[!,.]* ?)?вот [^:\n]{0,60}?(?:описание|подпись)[^:\n]{0,40}:"
)
_LABEL = (
    r"(?:(?:(?:image|video|photo|picture|short|dense|detailed|new|final|rewritten|revised) )?(?:caption|description)|"
    r"alt[- ]?text|assistant|answer|response|output|"
    r"(?:图片|图像|視頻|视频|圖片|画像)?(?:描述|说明|說明|の説明)|标题|標題|キャプション|"
    r"(?:bild)?beschreibung|bildunterschrift|légende|leyenda|descripción|описание|подпись) ?[:：]"
)
_MARK = r"(?:#{1,6} |\*\*|__)?"
_OPENING = re.compile(rf"{_MARK}(?:{_ENGLISH}|{_OTHERS}|{_LABEL})(?:\*\*|__)?\s*(?=\S)", re.IGNORECASE)


def tidied(text: str) -> str:
    """Return the caption that an answer holds; empty if it holds none. `tidied(tidied(x)) == tidied(x)`."""
    text = _spaced(text)
    for _ in range(_ROUNDS):
        inside = _unframed(text).strip()
        if inside == text:
            break
        text = inside
    return text


def _spaced(text: str) -> str:
    if text.isprintable():
        return " ".join(text.split())
    lines = _UNFIT.sub("", text).splitlines()
    return _EMPTY_LINES.sub("\n\n", "\n".join(" ".join(line.split()) for line in lines)).strip()


def _unframed(text: str) -> str:
    """Take off one frame."""
    if thoughts := _THOUGHTS.match(text):
        return text[thoughts.end() :]
    if text.endswith(">") and (mark := _END_MARK.search(text[-_LONGEST_MARK:])):
        return text[: -len(mark[0])]
    if (fenced := _FENCE.fullmatch(text)) and "```" not in fenced["inside"]:
        return fenced["inside"]
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        inside = text[1:-1]
        if text[0] not in inside.strip(text[0]) and text[-1] not in inside.strip(text[-1]):
            return inside
    if opening := _OPENING.match(text):
        return text[opening.end() :]
    return text
