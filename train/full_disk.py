"""A disk that is too full for a checkpoint: told before as much as possible is written, with the figures that help."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenmill.errors import StorageError
from tokenmill.manifests.storage import Store

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def told_when_full(store: Store, folder: str, needed: int) -> Iterator[None]:
    """Write `needed` bytes below a folder meanwhile; raises StorageError naming it, them and what is free.

    Only a local disk can be asked before; a remote store says it in its own words.
    """
    local = store.local_path(folder)
    if local is None:
        yield
        return
    try:
        local.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(local).free < needed:
            raise OSError(errno.ENOSPC, "too little is free")
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _error(local, needed) from error
        raise StorageError(f"{local}: cannot write a checkpoint there: {error.strerror}") from error
    except StorageError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _FULL:
            raise _error(local, needed) from error
        raise


def _error(folder: Path, needed: int) -> StorageError:
    free = shutil.disk_usage(folder).free
    return StorageError(
        f"{folder}: the disk is full: this rank's part of the checkpoint needs {needed:,} bytes, {free:,} are free; "
        "free some space, keep fewer (train.keep) or put them elsewhere (train.checkpoints)"
    )
