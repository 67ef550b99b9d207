"""What `train.loader` of a recipe means to a loader of one plan."""

from __future__ import annotations

from typing import Any

from tokenmill.manifests.plans import Plan
from tokenmill.settings_loader import LoaderSettings
from tokenmill.train.shard_bytes import StoreBytes


def loading(plan: Plan, settings: LoaderSettings) -> dict[str, Any]:
    """Return the arguments of PlanLoader; raises RecipeError for a cache folder that cannot be written to."""
    digests = dict(zip(plan.shards["shard"], plan.shards["shard_sha256"], strict=True))
    return {
        "threads": settings.threads,
        "read_ahead_steps": settings.read_ahead_steps,
        "read_ahead_bytes": settings.read_ahead_bytes,
        "step_timeout_s": settings.timeout_s,
        "source": StoreBytes(plan.folder.store, digests, settings),
    }
