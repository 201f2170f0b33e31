"""Whether a child that a model asks for is started: limits first, then the spawn policy."""

from __future__ import annotations

from time import perf_counter

from policies import EngineLoad, SpawnDecision, SpawnRequest, TreeLoad, TreeView
from policies.conversion import shown
from runtime.errors import PolicyError, described
from runtime.link.commands import Signal
from runtime.threads.context import Context


def decide(context: Context, signal: Signal, entropy: float, *, index: int, granted: int) -> SpawnDecision:
    """What becomes of a thread's spawn or branch, the `index`-th since its last join, of which so many were `granted`.

    Raises `PolicyError` for a policy that raises or answers no decision.
    """
    opened, policy = context.session.opened, context.settings.spawn
    recorded = None if opened.recorded_spawns is None else opened.recorded_spawns.next(context.path)
    refusal = context.account.refusal()
    if refusal:
        return SpawnDecision(run=False, reason=refusal)
    size = opened.max_context
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
    if recorded is not None and policy.reads == "load":
        return recorded
    try:
        decision = policy.decide(request, _view(context, signal, policy.reads == "load"))
    except Exception as error:
        raise PolicyError(
            f"{type(policy).__name__}.decide raised for thread {context.path}: {described(error)}."
        ) from error
    if not isinstance(decision, SpawnDecision):
        raise PolicyError(f"{type(policy).__name__}.decide answered {shown(decision)}; it must be a SpawnDecision.")
    if policy.reads == "load" and (decision.depth is not None or decision.limits is not None):
        raise PolicyError(
            f"{type(policy).__name__}.decide gave a child a depth or limits; a policy that reads the load says whether "
            f"it runs, and nothing else, so that its trace can be played back."
        )
    return decision


def _view(context: Context, signal: Signal, reads_load: bool) -> TreeView:
    tree = context.account.tree()
    return TreeView(
        threads=tree.total.threads,
        running=tree.running,
        # The present call is not reported yet; the others of the tree count when they are.
        tokens=tree.total.generated + signal.start + len(signal.tokens),
        iterations=tree.total.iterations,
        waiting=context.session.statistics.waiting,
        load=_load(context) if reads_load else None,
    )


def _load(context: Context) -> EngineLoad:
    trees, statistics = context.account.engine().trees, context.session.statistics
    now = perf_counter()
    return EngineLoad(
        trees=tuple(
            TreeLoad(
                tree=path[0],
                seconds=now - each.started,
                deadline=each.limits.seconds,
                generated=each.total.generated,
                # Who asks goes on, also where its call has ended by now.
                speaking=each.speaking + (path == context.path[:1] and not context.account.is_calling),
            )
            for path, each in trees.running.items()
        ),
        costs=statistics.tick_costs,
        lanes=context.session.opened.lanes,
        iterations=max(1.0, statistics.iterations / max(1, statistics.computed)),
        tokens_per_tree=trees.mean_generated,
    )
