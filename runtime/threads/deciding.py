"""Whether a child that a model asks for is started: limits first, then the spawn policy."""

from __future__ import annotations

from policies import SpawnDecision, SpawnRequest, TreeView
from policies.conversion import shown
from runtime.errors import PolicyError, described
from runtime.link.commands import Signal
from runtime.threads.context import Context


def decide(context: Context, signal: Signal, entropy: float, *, index: int, granted: int) -> SpawnDecision:
    """What becomes of a thread's spawn or branch, the `index`-th since its last join, of which so many were `granted`.

    Raises `PolicyError` for a policy that raises or answers no decision.
    """
    refusal = context.account.refusal()
    if refusal:
        return SpawnDecision(run=False, reason=refusal)
    size = context.session.opened.max_context
    if not signal.tokens:
        return SpawnDecision(run=False, reason="its message is empty")
    if size is not None and len(signal.tokens) > size:
        return SpawnDecision(run=False, reason=f"its message is longer than the model's context of {size} tokens")
    request = SpawnRequest(
        parent=context.path,
        message=signal.tokens,
        index=index,
        granted=granted,
        entropy=entropy,
    )
    policy = context.settings.spawn
    try:
        decision = policy.decide(request, _view(context, signal))
    except Exception as error:
        raise PolicyError(
            f"{type(policy).__name__}.decide raised for thread {context.path}: {described(error)}."
        ) from error
    if not isinstance(decision, SpawnDecision):
        raise PolicyError(f"{type(policy).__name__}.decide answered {shown(decision)}; it must be a SpawnDecision.")
    return decision


def _view(context: Context, signal: Signal) -> TreeView:
    tree = context.account.tree()
    return TreeView(
        threads=tree.total.threads,
        running=tree.running,
        # The present call is not reported yet; the others of the tree count when they are.
        tokens=tree.total.generated + signal.start + len(signal.tokens),
        iterations=tree.total.iterations,
        waiting=context.session.statistics.waiting,
    )
