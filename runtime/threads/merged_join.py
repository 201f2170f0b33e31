"""Merged joins on the event loop: which contexts may be merged, and the device asked to fill them and to merge them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import anyio

from runtime.errors import LimitExceeded, ThreadStateError, changed_since_fork
from runtime.link.commands import Failed, Finished, Interrupt, Merge
from runtime.threads.context import Context
from runtime.threads.generate_options import GenerateOptions


def check_forked(parent: Context, children: Iterable[Context]) -> None:
    """Raises `ThreadStateError` unless the parent is idle, and all children were forked from it as it is now."""
    parent.check_idle("join")
    for child in children:
        if child.forked_at is None:
            raise ThreadStateError(
                f"Child {child.path} was spawned with its message alone, so that its keys and values do not go on from "
                f"those of thread {parent.path}. Start it by fork(), or join it with merge=False."
            )
        if child.forked_at != (parent.path, len(parent.tokens)):
            raise changed_since_fork(parent.path, child.path)


async def fill_all(contexts: Sequence[Context]) -> None:
    """Has the device compute what it has not of ended forks, all at once. Raises what the first of them failed of."""
    errors: list[Exception] = []

    async def fill(context: Context) -> None:
        try:
            await _fill(context)
        except Exception as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        for context in contexts:
            group.start_soon(fill, context)
    if errors:
        raise errors[0]


async def merge_contexts(parent: Context, children: Sequence[Context]) -> None:
    """Takes over what filled children have beyond their parent's context, in this order, keys and values included.

    Raises what the device refuses it with; then nothing has changed. Cancelled meanwhile, it is done all the same.
    """
    paths = tuple(child.path for child in children)
    length, grown = len(parent.tokens), [child for child in children if child.has_own]
    await parent.session.request(lambda number: Merge(parent.path, paths, number))
    if not grown:
        return
    position = max(len(child.tokens) - child.skipped for child in grown)
    for child in grown:
        parent.tokens.extend(child.tokens[length:])
    parent.skipped = len(parent.tokens) - position
    parent.joined_at = len(parent.tokens)
    parent.account.see_length(len(parent.tokens))


async def _fill(context: Context) -> None:
    """Raises `LimitExceeded` where a thread's iterations do not suffice."""
    session = context.session
    await session.acquire(nowait=False)
    try:
        call = context.ask(GenerateOptions(fills=True), wants_reports=False)
        try:
            while not isinstance(report := await call.next(), Finished | Failed):
                pass
        except BaseException:
            session.send(Interrupt(context.path, keep=0))
            raise
    finally:
        session.release()
    if isinstance(report, Failed):
        raise report.error
    if report.reason != "filled":
        raise LimitExceeded(
            f"Thread {context.path} had too few iterations left to compute its last tokens for a merged join. Raise "
            "Limits.iterations."
        )
