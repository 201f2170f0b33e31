"""Threads for which two models speak in turns: whose turn it is, and what the smaller one says.

    queues --a thread whose next token is the other model's--> set aside
    set aside --all together, a token each, before what enters a tick is chosen--> said --> queues

The smaller model is the one that guesses under `Speculative`, with its mirrors of threads and their seeds. What it says
stands in a thread's context like a message: the larger model reads it in chunks, once it is to speak again.
"""

from __future__ import annotations

from policies import EntropySwitch
from runtime.console.logs import logger
from runtime.device.active_generate import Drawn
from runtime.device.drafter import Drafter, DraftRequest
from runtime.device.generates import Generates
from runtime.device.queues import Queues
from runtime.device.sequence import Sequence

_log = logger("runtime.device")


class Switching:
    """Decides who speaks, and asks the smaller model."""

    def __init__(self, queues: Queues, generates: Generates, drafter: Drafter | None) -> None:
        self._queues = queues
        self._generates = generates
        self._drafter = drafter

    def is_elsewhere(self, sequence: Sequence) -> bool:
        """Whether the smaller model says a thread's next token. Raises what its policy raises."""
        generate, policy = sequence.generate, sequence.depth
        if self._drafter is None or generate is None or not isinstance(policy, EntropySwitch):
            return False
        if generate.request.matcher is not None:
            return False
        return bool(generate.entropies) and not generate.is_alone and bool(policy.is_clear(generate.entropies))

    def speak(self) -> None:
        """Has the smaller model say a token for each thread that was set aside; they are ready again."""
        aside = sorted(self._queues.aside.values(), key=lambda sequence: sequence.order)
        if not aside:
            return
        for sequence, said in zip(aside, self._say(aside), strict=True):
            generate = sequence.generate
            assert generate is not None
            if said is None:
                generate.is_alone = True
            else:
                try:
                    self._generates.take_sampled(sequence, generate, said)
                except BaseException as cause:
                    self._generates.fail_unforeseen(sequence, cause)
            if sequence.generate is not None:
                self._queues.enqueue(sequence)

    def _say(self, aside: list[Sequence]) -> list[Drawn | None]:
        """A token for each thread; None where the smaller model cannot go on."""
        if self._drafter is None:
            return [None] * len(aside)
        requests = [
            DraftRequest(
                path=sequence.path,
                seed=sequence.seed,
                tokens=sequence.tokens,
                count=1,
                sampling=sequence.generate.request.sampling,
            )
            for sequence in aside
            if sequence.generate is not None
        ]
        try:
            return self._drafter.say(requests)
        except Exception as cause:
            _log.warning("draft_model_failed", error=repr(cause))
            self._drafter = None
            return [None] * len(aside)
