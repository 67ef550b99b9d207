"""A disk that is too full for a checkpoint: told before as much as possible is written, with the figures that help."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir

from tokenmill.errors import StorageError
from tokenmill.manifests.storage import Store

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def told_when_full(store: Store, folder: str, needed: int) -> Iterator[None]:
    """Write `needed` bytes below a folder meanwhile; raises StorageError naming it, them and what is free.

    On its way to a remote store a file lies on the local disk for temporary files; the store itself cannot be asked.
    """
    here = store.local_path(folder) or Path(gettempdir())
    try:
        here.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(here).free < needed:
            raise OSError(errno.ENOSPC, "too little is free")
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _error(here, needed) from error
        raise StorageError(f"{here}: cannot write a checkpoint there: {error.strerror}") from error
    except StorageError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _FULL:
            raise _error(here, needed) from error
        raise


def _error(folder: Path, needed: int) -> StorageError:
    free = shutil.disk_usage(folder).free
    return StorageError(
        f"{folder}: the disk is full: this rank's part of the checkpoint needs {needed:,} bytes, {free:,} are free; "
        "free some space, keep fewer (train.keep) or put them elsewhere (train.checkpoints)"
    )
