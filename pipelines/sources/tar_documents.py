"""Documents in WebDataset tars: `<key>.json`, and its pictures as `<key>.<n>.jpg`, `<key>.<name>.png` or `<key>.jpg`.

A reference of the JSON means the member of its name. Where not all names agree, members that are numbered mean the
pictures in the order of the JSON (from 0), or their places in its list; a number never means a URL that ends in it. One
bare member is the one picture. A member that is never shown fails its document, as does a reference without a member.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tokenmill.errors import SampleError
from tokenmill.manifests.archive import Member, split_name
from tokenmill.manifests.identity import sha256_hex
from tokenmill.pipelines.sources.documents import document_row, names_of, parsed_or_error
from tokenmill.pipelines.sources.laid_out import LaidOut, Reference, check_bytes
from tokenmill.pipelines.sources.source import IndexRow, PicturePlace

_Found = tuple[Member, bytes]


def tar_document(
    path: str, key: str, group: Sequence[_Found], layout: str, described: Mapping[str, Any], extensions: Iterable[str]
) -> IndexRow:
    """Index one document of a tar; `extensions` are those of pictures."""
    endings = tuple(extensions)
    members = {_ending(member.name): (member, data) for member, data in group}
    found = next((one for ending, one in members.items() if ending.lower() == "json"), None)
    if found is None:
        error = SampleError("no_document", f"its members are: {', '.join(sorted(members))}")
        return IndexRow(key=key, path=path, error=error)
    pictures = {ending: one for ending, one in members.items() if ending.lower().rpartition(".")[2] in endings}

    def find(laid: LaidOut) -> list[PicturePlace]:
        return [_place(path, one) for one in _matched(laid, pictures)]

    row = document_row(key, path, parsed_or_error(found[1]), layout, find, described=described)
    return row if row.error is not None else replace(row, offset=found[0].offset, length=found[0].length)


def _place(path: str, found: _Found) -> PicturePlace:
    member, data = found
    extension = split_name(member.name)[1].rpartition(".")[2]
    return PicturePlace(
        path=path, offset=member.offset, length=member.length, extension=extension, sha256=sha256_hex(data)
    )


def _ending(name: str) -> str:
    """Return what follows the first dot of a member's name, its case kept."""
    return name.rpartition("/")[2].partition(".")[2]


def _matched(laid: LaidOut, members: Mapping[str, _Found]) -> list[_Found]:
    """Return the members that a document's references mean, in order."""
    references = laid.references
    chosen = _by_name(references, members)
    chosen = _by_number(references, members) if chosen is None else chosen
    lost = sorted(members if chosen is None else set(members).difference(chosen))
    if len(members) > len(references):
        raise SampleError("unshown_picture", f"shows {len(references)} of its pictures: {', '.join(lost[:8])}")
    if chosen is None:
        raise _missing(references, members)
    check_bytes(sum(members[name][0].length for name in chosen))
    return [members[name] for name in chosen]


def _by_name(references: Sequence[Reference], members: Mapping[str, _Found]) -> list[str] | None:
    """Match by file names, with or without their endings; None unless every reference has a member of its own."""
    by_name = {name.lower(): name for name in members} | {
        name.lower().rpartition(".")[0]: name for name in members if "." in name
    }
    found = []
    is_numbered = all(name.partition(".")[0].isdecimal() for name in members)
    for reference in references:
        if is_numbered and any("://" in name for name in reference.names):
            return None
        names = [form for name in names_of(reference) for form in (name.lower(), name.lower().rpartition(".")[0])]
        found.append(next((by_name[name] for name in names if name in by_name), None))
    chosen = [name for name in found if name is not None]
    return chosen if len(chosen) == len(references) == len(set(chosen)) else None


def _by_number(references: Sequence[Reference], members: Mapping[str, _Found]) -> list[str] | None:
    """Match by numbers in the members' names: the order of the pictures, or their places in the JSON's list."""
    if len(members) == len(references) == 1 and "." not in next(iter(members)):
        return list(members)
    numbered = {int(stem): name for name in members if (stem := name.partition(".")[0]).isdecimal() and "." in name}
    for numbers in (range(len(references)), [reference.slot for reference in references]):
        if len(set(numbers)) == len(references) and set(numbers) == set(numbered):
            return [numbered[number] for number in numbers]
    return None


def _missing(references: Sequence[Reference], members: Mapping[str, _Found]) -> SampleError:
    if not members and any("://" in name for reference in references for name in reference.names[:1]):
        return SampleError("remote_picture", "its pictures are URLs and the archive has none; fetch them first")
    there = ", ".join(sorted(members)[:8]) or "none"
    return SampleError("missing_picture", f"{len(references)} pictures are referred to; its pictures are: {there}")
