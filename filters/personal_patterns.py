"""Where personal data stands in a text: what `personal_data` counts and what the mask replaces.

Seven kinds, each found by a pattern and then checked: telephone numbers against the numbering plans of `phonenumbers`,
IBANs by length and modulo 97, cards by issuer, length and Luhn's digit, IP addresses by `ipaddress`. Where two overlap,
the kind that stands first in `KINDS` wins, so every character is counted at most once.

Every pattern is linear in the length of the text: runs are entered at their beginning only and have a bounded length.
Patterns are tried only where a text holds what they cannot do without (`@`, `://`, digits), which is most of the speed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from ipaddress import ip_address
from typing import NamedTuple

VERSION = 2
KINDS = ("credentials", "secret", "email", "iban", "card", "ip", "phone")


class Span(NamedTuple):
    """Characters [start, end) of a text are personal data of a kind."""

    kind: str
    start: int
    end: int


def find(text: str, phone_regions: Sequence[str]) -> list[Span]:
    """Return what is personal in a text, in its order, without overlaps.

    `phone_regions`: countries (ISO 3166, two letters) whose numbers are known without a country code.
    """
    found: list[Span] = []
    taken = bytearray()
    has_numbers = bool(_SEVEN_DIGITS.search(text))
    for kind in KINDS:
        if kind in ("card", "phone") and not has_numbers:
            continue
        spans = _phones(text, phone_regions) if kind == "phone" else _FINDERS[kind](text)
        for start, end in spans:
            taken = taken or bytearray(len(text))
            if not any(taken[start:end]):
                found.append(Span(kind, start, end))
                taken[start:end] = b"\1" * (end - start)
    return sorted(found, key=lambda span: span.start)


_LETTER = (
    "A-Za-z\u00c0-\u058f"  # scripts with spaces that addresses are written in; Han before an address is no part of it
)
_EMAIL = re.compile(
    rf"(?<![{_LETTER}0-9._%+'-])[{_LETTER}0-9_%+'-][{_LETTER}0-9._%+'-]{{0,63}}(?:@|%40)"
    rf"(?:[{_LETTER}0-9](?:[{_LETTER}0-9-]{{0,61}}[{_LETTER}0-9])?\.){{1,8}}[{_LETTER}]{{2,24}}(?![{_LETTER}0-9])"
)
_EMAIL_ELSEWHERE = re.compile(r"(?<![\w.+-])[\w][\w.+-]{0,63}@(?:[^\W_][\w-]{0,62}\.){1,8}[^\W\d_]{2,24}")
_CREDENTIALS = re.compile(r"://([^\s/?#@:<>]{1,256}:[^\s/?#<>]{1,256})@")
_SECRETS = {
    "PRIVATE KEY": r"-----BEGIN [A-Z ]{0,24}PRIVATE KEY-----(?:[A-Za-z0-9+/=\s:,.]|-(?!-)){1,8192}"
    r"-----END [A-Z ]{0,24}PRIVATE KEY-----",
    "AKIA": r"AKIA[0-9A-Z]{16}",
    "ASIA": r"ASIA[0-9A-Z]{16}",
    "gh": r"gh[opusr]_[A-Za-z0-9]{36,255}",
    "github_pat_": r"github_pat_[A-Za-z0-9_]{22,255}",
    "glpat-": r"glpat-[A-Za-z0-9_-]{20,64}",
    "hf_": r"hf_[A-Za-z0-9]{30,64}",
    "sk-": r"sk-[A-Za-z0-9_-]{20,200}",
    "sk_live_": r"sk_live_[A-Za-z0-9]{16,128}",
    "xox": r"xox[abeoprs]-[A-Za-z0-9-]{10,200}",
    "AIza": r"AIza[A-Za-z0-9_-]{35}",
    "eyJ": r"eyJ[A-Za-z0-9_-]{10,4096}\.[A-Za-z0-9_-]{10,4096}\.[A-Za-z0-9_-]{10,1024}",
}
_SECRET_PATTERNS = {mark: re.compile(rf"(?<![A-Za-z0-9_]){one}(?![A-Za-z0-9_])") for mark, one in _SECRETS.items()}
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?:[ \u00a0-]?[A-Z0-9]){11,30}(?![A-Za-z0-9])")
_IBAN_LENGTHS = {
    15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK",
    21: "CH CR HR LI LV", 22: "BG BH DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL",
    24: "AD CZ DZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV", 29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
}  # fmt: skip
_IBAN_LENGTH = {country: length for length, countries in _IBAN_LENGTHS.items() for country in countries.split()}
_CARD = re.compile(r"(?<![A-Za-z0-9.,-])[2-6](?:[ -]?[0-9]){12,18}(?![A-Za-z0-9]|[.,-][0-9])")
_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}|6(?:011|4[4-9]\d|5\d\d)\d{12,15}|62\d{14,17}",
    re.ASCII,
)
_IPV4 = re.compile(r"(?<![A-Za-z0-9_.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![A-Za-z0-9_]|\.[0-9])")
_IPV6 = re.compile(r"(?<![A-Za-z0-9_:.])(?=[0-9A-Fa-f]{0,4}:)[0-9A-Fa-f:]{6,39}(?![A-Za-z0-9_:])")
_TWO_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_SEPARATORS = r"[ \u00a0().\-/\u2010-\u2015]{0,3}"
_SEVEN_DIGITS = re.compile(rf"\d(?:{_SEPARATORS}\d){{6}}")
_DIGITS = re.compile(r"\d+")
_MOST_DIGITS = 17
_MOST_GROUPS = 8  # of digits in a telephone number; more is a row of a table
_PHONE = re.compile(rf"(?<![A-Za-z0-9_.,+])(?:\+|\(\+?)?\d(?:{_SEPARATORS}\d){{6,16}}(?![A-Za-z0-9_])")


def _emails(text: str) -> Iterator[tuple[int, int]]:
    if "@" in text or "%40" in text:
        yield from (match.span() for match in _EMAIL.finditer(text))
        if not text.isascii():
            yield from (match.span() for match in _EMAIL_ELSEWHERE.finditer(text))


def _credentials(text: str) -> Iterator[tuple[int, int]]:
    if "://" in text and "@" in text:
        yield from (match.span(1) for match in _CREDENTIALS.finditer(text))


def _secrets(text: str) -> Iterator[tuple[int, int]]:
    for mark, pattern in _SECRET_PATTERNS.items():
        if mark in text:
            yield from (match.span() for match in pattern.finditer(text))


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in _IBAN.finditer(text):
        length = _iban_chars(match.group())
        if length:
            yield match.start(), match.start() + length


def _iban_chars(candidate: str) -> int:
    """Return how many characters of a candidate, separators included, are an IBAN; 0 for none."""
    wanted = _IBAN_LENGTH.get(candidate[:2], 0)
    places = [place for place, char in enumerate(candidate) if char.isalnum()][:wanted]
    if not wanted or len(places) < wanted or candidate[places[-1] + 1 : places[-1] + 2].isalnum():
        return 0
    plain = "".join(candidate[place] for place in places)
    number = int("".join(str(int(char, 36)) for char in plain[4:] + plain[:4]))
    return places[-1] + 1 if number % 97 == 1 else 0


def _cards(text: str) -> Iterator[tuple[int, int]]:
    for match in _CARD.finditer(text):
        digits = match.group().replace(" ", "").replace("-", "")
        if _ISSUERS.fullmatch(digits) and _luhn(digits):
            yield match.span()


def _luhn(digits: str) -> bool:
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def _ips(text: str) -> Iterator[tuple[int, int]]:
    if text.count(".") >= 3:
        yield from (match.span() for match in _IPV4.finditer(text) if _identifies(match.group()))
    if _TWO_COLONS.search(text):
        yield from (match.span() for match in _IPV6.finditer(text) if _identifies(match.group()))


def _identifies(candidate: str) -> bool:
    """Tell whether this is an address of the open internet: private and loopback addresses name nobody."""
    try:
        return ip_address(candidate).is_global
    except ValueError:
        return False


def _phones(text: str, regions: Sequence[str]) -> Iterator[tuple[int, int]]:
    fewest = min(map(_fewest_digits, regions), default=_MOST_DIGITS + 1)
    for match in _PHONE.finditer(text):
        groups = _DIGITS.findall(match.group())
        if len(groups) > _MOST_GROUPS or ("+" not in match.group() and sum(map(len, groups)) < fewest):
            continue
        for start, end in _valid_phones(match.group(), regions):
            yield match.start() + start, match.start() + end


@cache
def _fewest_digits(region: str) -> int:
    """Return how many digits the shortest number of a country has, its area code included."""
    from phonenumbers import PhoneMetadata

    plan = PhoneMetadata.metadata_for_region(region)
    described = plan.general_desc if plan else None
    return min((length for length in (described.possible_length if described else ()) if length > 0), default=1)


def _valid_phones(candidate: str, regions: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the telephone numbers of a candidate: with a country code any valid one, without one well grouped ones."""
    import phonenumbers

    tries: list[tuple[str | None, int]]
    if "+" in candidate:
        tries = [(None, phonenumbers.Leniency.VALID)]
    else:
        tries = [(region, phonenumbers.Leniency.STRICT_GROUPING) for region in regions]
    for region, leniency in tries:
        found = [(one.start, one.end) for one in phonenumbers.PhoneNumberMatcher(candidate, region, leniency)]
        if found:
            yield from found
            return


_FINDERS: dict[str, Callable[[str], Iterator[tuple[int, int]]]] = {
    "credentials": _credentials,
    "secret": _secrets,
    "email": _emails,
    "iban": _ibans,
    "card": _cards,
    "ip": _ips,
}
