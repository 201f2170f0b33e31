"""Jobs on an engine: each choice is a thread of its own, or a tree that the model orchestrates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from policies import Policy
from runtime.engine import Engine
from runtime.errors import LimitExceeded
from runtime.serve.openai_format import Ended, Piece
from runtime.serve.requests import Job, Prompt
from runtime.threads.results import Chunk, Generation, Usage, add
from runtime.threads.thread import ReasoningThread


class Listener(Protocol):
    """Takes what one choice says, as it comes."""

    async def began(self, index: int, prompt: Sequence[int]) -> None: ...

    async def grew(self, index: int, piece: Piece) -> None: ...

    async def ended(self, index: int, ended: Ended) -> None: ...


async def say(engine: Engine, job: Job, index: int, listener: Listener) -> None:
    """One choice of a job, from beginning to end. Cancelled, its threads are gone and their pages free.

    Raises what the engine refuses it with, before anything is told; a limit that runs out is an end like any other.
    """
    prompt: Prompt | None = job.prompts[index // job.n] if job.prompts else None
    if job.is_tree:
        await _say_tree(engine, job, index, prompt, listener)
        return
    thread = _opened(engine, job, prompt)
    spoke = _Spoken()
    try:
        async with thread:
            await _say_text(engine, job, index, thread, listener, spoke)
    except LimitExceeded:
        spoke.reason = "limit"
    await listener.ended(
        index,
        Ended(
            reason=spoke.reason,
            prompt_tokens=spoke.prompt_tokens,
            generated=spoke.tokens,
            usage=add(thread.usage, spoke.scored),
        ),
    )


class _Spoken:
    """What became of a choice so far."""

    def __init__(self) -> None:
        self.reason = "stop"
        self.prompt_tokens = 0
        self.tokens = 0
        self.scored = Usage()
        """Of scoring the prompt."""


def _begins(job: Job, prompt: Prompt | None) -> Mapping[str, Any]:
    """What a thread begins with, as the engine takes it."""
    if prompt is None:
        return {"messages": job.messages, "chat_template_kwargs": job.template_variables}
    return {"prompt": prompt}


def _opened(engine: Engine, job: Job, prompt: Prompt | None) -> ReasoningThread:
    return engine.thread(**_begins(job, prompt), limits=job.limits, sampling=job.sampling, priority=job.priority)


async def _say_text(
    engine: Engine, job: Job, index: int, thread: ReasoningThread, listener: Listener, spoke: _Spoken
) -> None:
    prompt = thread.tokens
    if not prompt:
        raise ValueError("The prompt is empty; give at least one token.")
    spoke.prompt_tokens = len(prompt)
    echoed = await _echo(engine, job, thread, spoke) if job.echo else None
    await listener.began(index, prompt)
    if echoed is not None:
        await listener.grew(index, echoed)
    if job.max_tokens == 0:
        spoke.reason = "length"
        return
    # Of a stream, what was said counts when time runs out.
    if not job.stream and job.limits.seconds is None:
        generation = await thread.generate(job.max_tokens, stop=job.stop, depth=job.depth, **_form(job))
        spoke.tokens = len(generation.tokens)
        await listener.grew(index, _piece(generation))
    else:
        ended = await _stream(job, index, thread, listener, spoke)
        if ended is None:
            return
        generation = ended
    spoke.reason = "limit" if generation.limit else generation.reason


def _form(job: Job) -> dict[str, Any]:
    return {} if job.constraint is None else job.constraint.as_given()


def _piece(said: Generation | Chunk) -> Piece:
    return Piece(
        text=said.text, tokens=said.tokens, logprobs=said.logprobs, top_logprobs=said.top_logprobs, depths=said.depths
    )


async def _stream(
    job: Job, index: int, thread: ReasoningThread, listener: Listener, spoke: _Spoken
) -> Generation | None:
    async with thread.stream(job.max_tokens, stop=job.stop, depth=job.depth, **_form(job)) as stream:
        async for chunk in stream:
            spoke.tokens += len(chunk.tokens)
            await listener.grew(index, _piece(chunk))
        return stream.generation


async def _echo(engine: Engine, job: Job, thread: ReasoningThread, spoke: _Spoken) -> Piece:
    """The prompt, as if it had been said; where log-probabilities are asked for, another thread scores it."""
    tokens, text = thread.tokens, thread.text
    if job.logprobs is None:
        return Piece(text=text, tokens=tokens)
    logprobs: list[float | None] = [None]
    tops: list[Mapping[int, float]] = [{}]
    depths: list[int | None] = [None]
    if len(tokens) > 1:
        async with engine.thread(tokens[:1], limits=job.limits, priority=job.priority) as scorer:
            score = await scorer.score(tokens[1:], top=job.logprobs, depth=job.depth)
        logprobs += score.logprobs
        tops += score.top_logprobs or [{}] * len(score.tokens)
        depths += score.depths
        spoke.scored = scorer.usage
    return Piece(text=text, tokens=tokens, logprobs=logprobs, top_logprobs=tops, depths=depths)


async def _say_tree(engine: Engine, job: Job, index: int, prompt: Prompt | None, listener: Listener) -> None:
    policy = _policy(engine.policy, job)
    await listener.began(index, ())
    try:
        answer = await engine.run(
            **_begins(job, prompt),
            limits=job.limits,
            policy=policy,
            sampling=job.sampling,
            max_tokens=job.max_tokens,
            priority=job.priority,
        )
    except LimitExceeded as error:
        usage = Usage() if error.answer is None else error.answer.usage
        await listener.ended(index, _tree_ended("limit", usage))
        return
    await listener.grew(index, Piece(text=answer.text, tokens=answer.tokens))
    await listener.ended(index, _tree_ended(answer.reason, answer.usage))


def _tree_ended(reason: str, usage: Usage) -> Ended:
    return Ended(reason=reason, prompt_tokens=usage.prompt_tokens, generated=usage.generated, usage=usage)


def _policy(own: Policy, job: Job) -> Policy:
    changes = {name: value for name in ("depth", "spawn") if (value := getattr(job, name)) is not None}
    return msgspec.structs.replace(own, **changes)
