"""What all sources of documents share: a document's digest, what is kept of its JSON as metadata, and its index row.

The digest is over the parts and the pictures' digests, not over the JSON's bytes: a page is the same page under another
key, and a layout that is read otherwise makes another document.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from tokenmill.errors import SampleError
from tokenmill.manifests.identity import digest_of, sha256_hex
from tokenmill.pipelines.sources.laid_out import LaidOut, Reference
from tokenmill.pipelines.sources.layout_segments import segments_json
from tokenmill.pipelines.sources.layouts import lay_out
from tokenmill.pipelines.sources.metadata import metadata_text
from tokenmill.pipelines.sources.raw_document import RawDocument, RawPart
from tokenmill.pipelines.sources.source import IndexRow, PicturePlace, Source

PACKED_LAYOUT = "segments"  # of documents that ingest packs
_LONGEST_TEXT, _LONGEST_LIST, _DEEPEST = 1024, 64, 16  # of metadata: what is longer is told by its length


@runtime_checkable
class DocumentSource(Source, Protocol):
    """A source of documents; `layout` is that of the JSON which its index rows point to."""

    layout: str


def parsed(data: bytes) -> Any:
    """Parse a JSON; raises SampleError `bad_encoding` or `bad_json`."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise SampleError("bad_encoding", f"byte {error.start} of the JSON is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise SampleError("bad_json", "it is not JSON") from error


def parsed_or_error(data: bytes) -> Any:
    """Return what `parsed` returns or raises."""
    try:
        return parsed(data)
    except SampleError as error:
        return error


def document_digest(parts: Sequence[RawPart], pictures: Sequence[str]) -> str:
    """Return the SHA-256 that a document is known by: of its parts and its pictures' own digests."""
    return digest_of([segments_json(parts), list(pictures)])


def document_metadata(value: Mapping[str, Any], laid: LaidOut) -> dict[str, Any]:
    """Return what a JSON says besides its parts, and by which names it knew the pictures (`pictures`)."""
    told = {key: short(part) for key, part in value.items() if key not in laid.used}
    names = [reference.names[-1] for reference in laid.references if reference.names]
    named = [name for name in names if not name.startswith("data:")]
    return {**told, "pictures": named} if named else told


def short(value: Any, depth: int = 0) -> Any:
    """Return a value without its long texts and lists, which are told by their length, and without its depths."""
    if isinstance(value, str):
        return value if len(value) <= _LONGEST_TEXT else {"characters": len(value)}
    if not isinstance(value, Mapping | list | tuple):
        return value
    if len(value) > _LONGEST_LIST or depth > _DEEPEST:
        return {"items": len(value)}
    if isinstance(value, Mapping):
        return {str(key): short(part, depth + 1) for key, part in value.items()}
    return [short(part, depth + 1) for part in value]


def document_row(
    key: str, path: str, value: Any, layout: str, find: Callable[[LaidOut], Sequence[PicturePlace]], *,
    described: Mapping[str, Any] | None = None, packs: bool = False,
) -> IndexRow:  # fmt: skip
    """Index one document: lay out its JSON, find its pictures, take the digest; what is wrong becomes a failure.

    Args:
        value: the parsed JSON, or why it cannot be parsed.
        find: returns the pictures that the references mean, in their order; raises SampleError.
        described: what else is known, for the metadata.
        packs: whether ingest is to pack it.
    """
    told = described or {}
    try:
        if isinstance(value, SampleError):
            raise value
        laid = lay_out(value, layout)
        told = {**told, **document_metadata(value, laid)}
        pictures = tuple(find(laid))
    except SampleError as error:
        return IndexRow(key=key, path=path, metadata=metadata_text(told), error=error)
    metadata = metadata_text(told)
    return IndexRow(
        key=key,
        path=path,
        extension="json",
        sha256=document_digest(laid.parts, [picture.sha256 for picture in pictures]),
        metadata=metadata,
        payload=packed_json(key, laid.parts, json.loads(metadata)) if packs else None,
        pictures=pictures,
    )


def read_document(data: bytes, pictures: Sequence[bytes], layout: str, sha256: str) -> RawDocument:
    """Read an indexed document back; raises SampleError `changed_since_ingest` where it is another one now."""
    try:
        laid = lay_out(parsed(data), layout)
    except SampleError as error:
        raise SampleError("changed_since_ingest", f"the indexed JSON is another now ({error.reason})") from error
    if document_digest(laid.parts, [sha256_hex(picture) for picture in pictures]) != sha256:
        raise SampleError("changed_since_ingest", "the bytes differ from the index's digest; run ingest again")
    return RawDocument(parts=laid.parts, pictures=tuple(pictures))


def packed_json(key: str, parts: Sequence[RawPart], metadata: Mapping[str, Any]) -> bytes:
    """Return the JSON that ingest packs for a document: tokenmill's layout, and the metadata."""
    told = {name: value for name, value in metadata.items() if name != "images"}  # of the layout: a list of names
    return json.dumps({**told, "key": key, PACKED_LAYOUT: segments_json(parts)}, ensure_ascii=False).encode()


def names_of(reference: Reference) -> tuple[str, ...]:
    """Return the file names (without folders) that a reference may mean, the surest first."""
    bare = (name.split("?")[0].split("#")[0] if "://" in name else name for name in reference.names)
    return tuple(name.replace("\\", "/").rstrip("/").rpartition("/")[2] for name in bare)
