"""Run what the thread asks for."""

from __future__ import annotations

from policies.spawn.base import SpawnPolicy


class AsAsked(SpawnPolicy, frozen=True):
    """Every child that a thread asks for runs, within the tree's limits."""
