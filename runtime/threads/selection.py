"""Several roots for one prompt: how many there are, and whose answer is taken, as a select policy says."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import msgspec

from policies import SelectPolicy
from policies.conversion import shown
from runtime.errors import LimitExceeded, PolicyError, described
from runtime.threads.driver import drive
from runtime.threads.results import Answer, Outcome, add, answered
from runtime.threads.running import RunningThread


async def answer_of(root: RunningThread) -> Answer:
    """What a root's model says, until it ends it."""
    try:
        outcome = await root.run(drive)
    except LimitExceeded as error:
        error.answer = answered(Outcome((), "", "limit"), root.path, root.context.account.usage())
        raise
    return answered(outcome or Outcome((), "", "cancelled"), root.path, root.context.account.usage())


async def best_answer(roots: Sequence[RunningThread], policy: SelectPolicy, prompt: str) -> Answer:
    """Lets roots answer one prompt, and gives the answer that the policy chooses, with the usage of all.

    A root that runs out of its limits has none. Raises `LimitExceeded` where all do, and what any other fails of.
    """
    answers: list[Answer | None] = [None] * len(roots)
    errors: list[Exception] = []

    async def sample(index: int, root: RunningThread) -> None:
        try:
            answers[index] = await answer_of(root)
        except LimitExceeded as error:
            errors.append(error)
        except Exception as error:
            errors.insert(0, error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for index, root in enumerate(roots):
            group.start_soon(sample, index, root)
    given = [each for each in answers if each is not None]
    if not given or any(not isinstance(error, LimitExceeded) for error in errors):
        raise errors[0]
    chosen = given[_choose(policy, prompt, [each.text for each in given])]
    return msgspec.structs.replace(chosen, usage=add(*(root.context.account.usage() for root in roots)))


def _choose(policy: SelectPolicy, prompt: str, answers: Sequence[str]) -> int:
    """The index of the answer that is taken. Raises `PolicyError` where the policy gives none."""
    name = type(policy).__name__
    try:
        index = policy.choose(prompt, answers)
    except Exception as error:
        raise PolicyError(f"{name}.choose raised: {described(error)}.") from error
    if not isinstance(index, int) or not 0 <= index < len(answers):
        raise PolicyError(
            f"{name}.choose answered {shown(index)} for {len(answers)} answers; it must be an index of one."
        )
    return index
