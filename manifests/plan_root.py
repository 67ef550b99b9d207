"""A plan's folder is read from its root: what it names lies beside it, relative to the root, not below it."""

from __future__ import annotations

from tokenmill.errors import ManifestError
from tokenmill.manifests.storage import Store, open_store

_DEPTH = 3  # plans/<phase>/<plan>


def in_root(store: Store, path: str) -> tuple[Store, str] | None:
    """Return a store of the root around a plan's folder, and the folder's path in it.

    None where the folder does not lie at `plans/<phase>/<plan>`: it was copied out of its root.
    """
    whole = f"{store.url}/{path}".rstrip("/")
    parts = whole.split("/")
    if len(parts) <= _DEPTH or parts[-_DEPTH] != "plans":
        return None
    place = "/".join(parts[-_DEPTH:])
    if path == place:
        return store, path
    return open_store(whole.removesuffix(f"/{place}") or "/", store.options), place


def placed_in_root(store: Store, path: str) -> tuple[Store, str]:
    """As `in_root`; raises ManifestError where the plan was taken out of its root."""
    found = in_root(store, path)
    if found is None:
        where = f"{store.url}/{path}".rstrip("/")
        raise ManifestError(f"{where}: does not lie at plans/<phase>/<plan> of a root, where the archives it reads are")
    return found
