"""What takes ssh's place in tests: it runs what it is told on this machine, and notes which host was meant."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

_SCRIPT = """#!/bin/bash
while [[ $1 == -* ]]; do shift 2; done
echo "$1" >> "$SSH_LOG"
if [ "$1" = unreachable ]; then echo "ssh: no route to host" >&2; exit 255; fi
shift
exec sh -c "$*"
"""


def stand_in_for_ssh(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in before ssh; returns the file with a line for each host that was called."""
    folder.mkdir(parents=True)
    (folder / "ssh").write_text(_SCRIPT)
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SSH_LOG", str(folder / "log"))
    return folder / "log"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        found: int = one.getsockname()[1]
        return found
