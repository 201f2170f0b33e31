"""A second, smaller model that guesses what threads will say next: a device loop inside the device thread.

    contexts of threads --> their mirrors here: cut to what still holds, extended by what is new
    generates of a few tokens, all threads together --> ticks until they are done --> guesses

A mirror has its thread's path and seed, so that where a thread samples, its guesses are drawn with the very numbers
that its tokens will be drawn with. What a guess costs is the draft model's own, and in no usage.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import msgspec

from policies import Fixed
from runtime.device.active_generate import Drawn
from runtime.device.drafter import DraftRequest
from runtime.device.loop import DeviceLoop
from runtime.link.commands import CloseThread, Extend, Finished, Generate, Interrupt, OpenThread, ThreadPath


@dataclass(slots=True)
class Mirror:
    """What a thread's mirror holds."""

    tokens: list[int]
    guessed_from: int
    """Length of the context when it last guessed; what follows are guesses."""


class DraftModel:
    """A `Drafter` that runs a model."""

    def __init__(self, loop: DeviceLoop, max_context: int) -> None:
        """`max_context` is of the draft model: threads longer than that are not guessed for."""
        self._loop = loop
        self._max_context = max_context
        self._mirrors: dict[ThreadPath, Mirror] = {}

    def draft(self, requests: SequenceOf[DraftRequest]) -> list[tuple[int, ...]]:
        """See `Drafter`."""
        # Only the tokens are of interest.
        guessed = self._generate(
            [
                msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, logprobs=0))
                for request in requests
            ]
        )
        return [guessed[request.path].tokens if request.path in guessed else () for request in requests]

    def say(self, requests: SequenceOf[DraftRequest]) -> list[Drawn | None]:
        """See `Drafter`."""
        said = self._generate(requests, entropies=True)
        return [_drawn(said[request.path]) if request.path in said else None for request in requests]

    def forget(self, path: ThreadPath) -> None:
        """See `Drafter`."""
        if self._mirrors.pop(path, None) is not None:
            self._loop.handle(CloseThread(path))

    def close(self) -> None:
        """See `Drafter`."""
        self._loop.close()

    def _generate(self, requests: SequenceOf[DraftRequest], *, entropies: bool = False) -> dict[ThreadPath, Finished]:
        """What comes after the contexts that fit, all together, by thread."""
        asked = [request for request in requests if len(request.tokens) < self._max_context]
        for request in asked:
            self._catch_up(request)
            count = min(request.count, self._max_context - len(request.tokens))
            self._loop.handle(
                Generate(thread=request.path, max_tokens=count, sampling=request.sampling, entropies=entropies)
            )
        while self._loop.has_work:
            self._loop.step()
        reports = self._loop.journal.take_reports()
        found = {report.thread: report for report in reports if isinstance(report, Finished)}
        for request in asked:
            if request.path in found:
                self._mirrors[request.path].tokens += found[request.path].tokens
            else:
                self.forget(request.path)
        return found

    def _catch_up(self, request: DraftRequest) -> None:
        """Brings a thread's mirror to its context."""
        path, tokens = request.path, list(request.tokens)
        mirror = self._mirrors.get(path)
        if mirror is not None and tokens[: mirror.guessed_from] != mirror.tokens[: mirror.guessed_from]:
            self.forget(path)
            mirror = None
        if mirror is None:
            self._loop.handle(OpenThread(thread=path, seed=request.seed, depth=Fixed()))
            mirror = self._mirrors[path] = Mirror([], 0)
        else:
            kept = mirror.guessed_from
            while kept < min(len(tokens), len(mirror.tokens)) and tokens[kept] == mirror.tokens[kept]:
                kept += 1
            self._loop.handle(Interrupt(path, keep=kept - mirror.guessed_from))
            del mirror.tokens[kept:]
        self._loop.handle(Extend(path, tuple(tokens[len(mirror.tokens) :])))
        mirror.tokens, mirror.guessed_from = tokens, len(tokens)


def _drawn(said: Finished) -> Drawn:
    """The one token of a generate, as the larger model's scheduler takes it."""
    top = said.top_logprobs[0] if said.top_logprobs else None
    return Drawn(said.tokens[0], 0, said.logprobs[0], said.entropies[0], None if top is None else dict(top))
