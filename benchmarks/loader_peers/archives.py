"""The samples of a tokenmill token folder, read with what every environment has: how peers get their own copies."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.loader_peers.packing import Sample

MEMBER = "bin"
EMPTY = np.empty(0, np.uint16)


def archives(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def samples(folder: Path) -> Iterator[Sample]:
    """Yield text ids (uint32) and codes (uint16) of every sample, in the archives' order."""
    for archive in archives(folder):
        yield from samples_of(archive)


def samples_of(archive: Path) -> Iterator[Sample]:
    with tarfile.open(archive) as tar:
        found: dict[str, NDArray[Any]] = {}
        for member in tar:
            kind = member.name.partition(".")[2]
            data = tar.extractfile(member)
            assert data is not None
            if kind.endswith("npy"):
                found[kind] = np.load(BytesIO(data.read()))
            if kind == "text.npy":  # members are sorted by name: codes, json, text
                yield found.pop("text.npy"), found.pop("codes.npy", EMPTY)


def packed_bytes(text: NDArray[Any], codes: NDArray[Any]) -> bytes:
    """Join a sample's arrays as bytes: for formats where one field of bytes is the fastest."""
    return np.uint32(len(text)).tobytes() + text.tobytes() + codes.tobytes()


def unpacked(data: bytes | memoryview) -> Sample:
    """Undo `packed_bytes` without copying."""
    end = 4 + 4 * int.from_bytes(data[:4], "little")
    return np.frombuffer(data[4:end], np.uint32), np.frombuffer(data[end:], np.uint16)


def write_tars(source: Path, folder: Path) -> None:
    """Write one tar an archive, with one member a sample: a third of the headers, which is what reading tars costs."""
    folder.mkdir(parents=True)
    for number, archive in enumerate(archives(source)):
        with tarfile.open(folder / f"{number:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for place, (text, codes) in enumerate(samples_of(archive)):
                data = packed_bytes(text, codes)
                member = tarfile.TarInfo(f"{number:05d}-{place:06d}.{MEMBER}")
                member.size = len(data)
                tar.addfile(member, BytesIO(data))


def array(data: bytes) -> NDArray[Any]:
    """Give the array in the bytes of a one-dimensional `.npy` without parsing its header as Python source."""
    start = 10 + int.from_bytes(data[8:10], "little")
    dtype = np.uint16 if b"<u2" in data[:start] else np.uint32
    return np.frombuffer(data, dtype, offset=start)
