"""What all sources of documents share: a document's digest, what is kept of its JSON as metadata, and its index row.

The digest is over the parts and the pictures' digests, not over the JSON's bytes: a page is the same page under another
key, and a layout that is read otherwise makes another document.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from tokenmill.errors import SampleError
from tokenmill.manifests.identity import digest_of, sha256_hex
from tokenmill.pipelines.sources.laid_out import LaidOut, Reference
from tokenmill.pipelines.sources.layout_segments import segments_json
from tokenmill.pipelines.sources.layouts import lay_out
from tokenmill.pipelines.sources.metadata import metadata_text
from tokenmill.pipelines.sources.raw_document import RawDocument, RawPart
from tokenmill.pipelines.sources.source import IndexRow, PicturePlace, Source

PACKED_LAYOUT = "segments"  # of documents that ingest packs
_LONGEST_TEXT, _LONGEST_LIST = 1024, 64  # of metadata: what is longer is told by its length
T = TypeVar("T")


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


def document_digest(parts: Sequence[RawPart], pictures: Sequence[str]) -> str:
    """Return the SHA-256 that a document is known by: of its parts and its pictures' own digests."""
    return digest_of([segments_json(parts), list(pictures)])


def document_metadata(value: Mapping[str, Any], laid: LaidOut) -> dict[str, Any]:
    """Return what a JSON says besides its parts, and by which names it knew the pictures (`pictures`)."""
    told = {key: short(part) for key, part in value.items() if key not in laid.used}
    names = [reference.names[-1] for reference in laid.references if reference.names]
    return {**told, "pictures": names} if names else told


def short(value: Any) -> Any:
    """Return a value without its long texts and lists, which are told by their length."""
    if isinstance(value, str):
        return value if len(value) <= _LONGEST_TEXT else {"characters": len(value)}
    if isinstance(value, Mapping):
        return {str(key): short(part) for key, part in list(value.items())[:_LONGEST_LIST]}
    if isinstance(value, list | tuple):
        return [short(part) for part in value] if len(value) <= _LONGEST_LIST else {"items": len(value)}
    return value


def document_row(
    key: str, path: str, data: bytes, layout: str, find: Callable[[LaidOut], Sequence[T]],
    place: Callable[[T], PicturePlace], described: Mapping[str, Any],
) -> IndexRow:  # fmt: skip
    """Index one document: read its JSON, find its pictures, take the digest; what is wrong with it becomes a failure.

    Args:
        find: returns the pictures that the references mean, in their order; raises SampleError.
        place: says where such a picture lies.
        described: what else is known, for the metadata.
    """
    metadata = metadata_text(described)
    try:
        value = parsed(data)
        laid = lay_out(value, layout)
        metadata = metadata_text({**described, **document_metadata(value, laid)})
        pictures = tuple(map(place, find(laid)))
    except SampleError as error:
        return IndexRow(key=key, path=path, metadata=metadata, error=error)
    digest = document_digest(laid.parts, [picture.sha256 for picture in pictures])
    return IndexRow(
        key=key, path=path, length=len(data), extension="json", sha256=digest, metadata=metadata, pictures=pictures
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
    return json.dumps({**metadata, "key": key, PACKED_LAYOUT: segments_json(parts)}, ensure_ascii=False).encode()


def names_of(reference: Reference) -> tuple[str, ...]:
    """Return the file names (without folders) that a reference may mean, the surest first."""
    bare = (name.split("?")[0].split("#")[0] if "://" in name else name for name in reference.names)
    return tuple(name.replace("\\", "/").rstrip("/").rpartition("/")[2] for name in bare)
