"""Messages between the video decoder and its child: a JSON object, and pixels behind it if it has a `shape`.

JSON and never pickle: what decodes hostile files is not trusted with the parent's interpreter. Plain sockets (2.4 GB/s)
because `multiprocessing.Connection` allocates a buffer for the whole message at every read: a 365 MB clip took three
times as long from file to array.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

Message = dict[str, Any]
Pixels = NDArray[np.uint8]

_LENGTH_BYTES = 4


def send(channel: socket.socket, message: Message, pixels: Pixels | None = None) -> None:
    """Write one message, and C-contiguous `pixels` with it."""
    if pixels is not None:
        message = message | {"shape": pixels.shape}
    text = json.dumps(message).encode()
    channel.sendall(len(text).to_bytes(_LENGTH_BYTES, "big") + text)
    if pixels is not None and pixels.size:
        channel.sendall(pixels.data.cast("B"))


def receive(
    channel: socket.socket, deadline: float | None = None, into: Pixels | None = None
) -> tuple[Message, Pixels | None]:
    """Read one message and its pixels, the latter into the first rows of `into` where that is given.

    Raises TimeoutError past the monotonic `deadline`, EOFError when the other end is closed.
    """
    length = bytearray(_LENGTH_BYTES)
    _fill(channel, memoryview(length), deadline)
    text = bytearray(int.from_bytes(length, "big"))
    _fill(channel, memoryview(text), deadline)
    message: Message = json.loads(text)
    if "shape" not in message:
        return message, None
    pixels = np.empty(message["shape"], np.uint8) if into is None else into[: message["shape"][0]]
    if pixels.size:
        _fill(channel, pixels.data.cast("B"), deadline)
    return message, pixels


def _fill(channel: socket.socket, buffer: memoryview, deadline: float | None) -> None:
    filled = 0
    while filled < len(buffer):
        if deadline is not None:
            channel.settimeout(max(1e-3, deadline - time.monotonic()))
        received = channel.recv_into(buffer[filled:])
        if not received:
            raise EOFError("the other end of the socket is closed")
        filled += received
