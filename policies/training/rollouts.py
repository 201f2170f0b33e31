"""What a model said when it was asked, as a trace tells it: the threads of each tree, token by token."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from traces import ThreadStory, Trace, tree_of, walk
from traces.tree import Call, path_name


class Trajectory(msgspec.Struct, frozen=True, kw_only=True):
    """One thread, up to the last token that it sampled."""

    tree: int
    """Number of its tree: the first part of its path."""
    tokens: tuple[int, ...]
    is_sampled: tuple[bool, ...]
    """Which of `tokens` the thread sampled itself, rather than received."""
    logprobs: tuple[float, ...]
    """Nats, at which each token was sampled; 0 for received ones."""
    depths: tuple[int, ...]
    """Iterations of each token but the last, which was not computed any more."""


Prefix = tuple[bytes, tuple[int, ...]]
"""A depth policy, and the tokens of a context up to one of them."""


def trajectories(trace: Trace) -> list[Trajectory]:
    """Every thread of a trace that sampled anything.

    Raises `ValueError` for a trace whose tokens cannot be replayed in one pass: forks, which begin with another
    thread's tokens, engines that shared iteration slots, and threads that carried latent states.
    """
    if trace.header.engine.get("slots") is not None:
        raise ValueError("The trace was recorded with fewer slots than iterations; record rollouts with slots=None.")
    stories = list(walk(tree_of(trace.events)))
    depths: dict[Prefix, int] = {}
    for story in stories:
        _check(story)
        _note_depths(story, depths)
    found = (_trajectory(story, depths) for story in stories)
    return [trajectory for trajectory in found if trajectory is not None]


def _check(story: ThreadStory) -> None:
    if story.inherits is not None:
        raise ValueError(f"Thread {path_name(story.path)} is a fork; only threads with a context of their own replay.")
    if isinstance(story.depth, dict) and story.depth.get("carry", "none") != "none":
        raise ValueError(f"Thread {path_name(story.path)} carried latent states; record rollouts with carry='none'.")


def _prompt_of(story: ThreadStory) -> tuple[bytes, tuple[int, ...]]:
    """The thread's depth policy and its leading received tokens, which other threads may have computed for it."""
    tokens: list[int] = []
    for segment in story.segments:
        if isinstance(segment, Call):
            break
        tokens += segment.tokens
    return msgspec.msgpack.encode(story.depth), tuple(tokens)


def _note_depths(story: ThreadStory, depths: dict[Prefix, int]) -> None:
    policy, prompt = _prompt_of(story)
    for done in story.computed:
        for position in range(done.position, min(done.position + done.count, len(prompt))):
            depths[policy, prompt[: position + 1]] = done.depth


def _trajectory(story: ThreadStory, known: dict[Prefix, int]) -> Trajectory | None:
    said = list(_said(story))
    last = max((position for position, (_, logprob) in enumerate(said) if logprob is not None), default=0)
    if not last:
        return None
    said = said[: last + 1]
    depths = [0] * last
    for done in story.computed:
        for position in range(done.position, min(done.position + done.count, last)):
            depths[position] = done.depth
    policy, prompt = _prompt_of(story)
    for position, depth in enumerate(depths):
        if depth == 0:
            depths[position] = known.get((policy, prompt[: position + 1]), 0) if position < len(prompt) else 0
        if depths[position] == 0:
            raise ValueError(
                f"Thread {path_name(story.path)}: the trace does not say how deep token {position} is. It was computed "
                "before the recording began; record rollouts with reuse_prefixes=False, or with engine.recording()."
            )
    return Trajectory(
        tree=story.path[0],
        tokens=tuple(token for token, _ in said),
        is_sampled=tuple(logprob is not None for _, logprob in said),
        logprobs=tuple(logprob or 0.0 for _, logprob in said),
        depths=tuple(depths),
    )


def _said(story: ThreadStory) -> Iterator[tuple[int, float | None]]:
    for segment in story.segments:
        if isinstance(segment, Call):
            yield from ((sample.token, sample.logprob) for sample in segment.kept)
        else:
            yield from ((token, None) for token in segment.tokens)
