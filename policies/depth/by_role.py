"""Another depth policy for each role a thread plays in its tree."""

from __future__ import annotations

import msgspec

from policies.depth.base import DepthPolicy, EntryView, IntArray, Role
from policies.depth.fixed import Fixed
from policies.validation import check_policy, refuse_fields


class ByRole(DepthPolicy, frozen=True, kw_only=True):
    """Gives each thread the policy of its tree depth, else that of its role, else `otherwise`.

    A thread that spawns for the first time turns from child into parent at its next `generate` call.
    """

    root: DepthPolicy | None = None
    parent: DepthPolicy | None = None
    """For threads that have a parent and have spawned."""
    child: DepthPolicy | None = None
    """For threads that have a parent and have not spawned."""
    by_tree_depth: tuple[DepthPolicy, ...] = ()
    """The first is for root threads, the second for their children, and so on; deeper threads go by role."""
    otherwise: DepthPolicy = Fixed()

    def __post_init__(self) -> None:
        # A list would make the policy unhashable.
        msgspec.structs.force_setattr(self, "by_tree_depth", tuple(self.by_tree_depth))
        unused = ("min_iterations", "max_iterations", "check_every", "exit_received", "threshold", "carry")
        refuse_fields(self, unused, "give it to the policies that ByRole holds")
        for name in ("root", "parent", "child"):
            if getattr(self, name) is not None:
                check_policy(self, name, getattr(self, name), DepthPolicy)
        for number, policy in enumerate(self.by_tree_depth):
            check_policy(self, f"by_tree_depth[{number}]", policy, DepthPolicy)
        check_policy(self, "otherwise", self.otherwise, DepthPolicy)

    def for_thread(self, role: Role, tree_depth: int) -> DepthPolicy:
        if tree_depth < len(self.by_tree_depth):
            chosen: DepthPolicy | None = self.by_tree_depth[tree_depth]
        else:
            chosen = {"root": self.root, "parent": self.parent, "child": self.child}[role]
        return (self.otherwise if chosen is None else chosen).for_thread(role, tree_depth)

    def deepest(self, mean_recurrence: int) -> int:
        held = (self.root, self.parent, self.child, *self.by_tree_depth, self.otherwise)
        return max(policy.deepest(mean_recurrence) for policy in held if policy is not None)

    def bound(self, entering: EntryView) -> IntArray:
        raise TypeError("ByRole gives no bound itself; ask for_thread(role, tree_depth) for the thread's policy first.")
