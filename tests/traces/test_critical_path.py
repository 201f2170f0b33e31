"""The longest chain of dependent tokens, over trees made by hand."""

from __future__ import annotations

from traces import events as ev
from traces.critical_path import critical_paths
from traces.events import AnyEvent, ThreadPath


def opened(*path: int) -> AnyEvent:
    return ev.ThreadOpened(time=0.0, thread=path, inherits=None, seed=0, depth=None)


def sampled(count: int, *path: int) -> list[AnyEvent]:
    return [ev.Sampled(time=0.0, tick=0, thread=path, position=0, token=0, depth=1, logprob=0.0) for _ in range(count)]


def joined(parent: ThreadPath, *children: ThreadPath) -> AnyEvent:
    return ev.Joined(time=0.0, thread=parent, children=children, delivered=(), cancelled=())


def test_children_count_from_their_spawn_and_the_longest_is_waited_for() -> None:
    events = [
        opened(0),
        *sampled(5, 0),
        opened(0, 0),
        *sampled(2, 0),
        opened(0, 1),
        *sampled(20, 0, 0),
        *sampled(3, 0, 1),
        *sampled(1, 0),
        joined((0,), (0, 0), (0, 1)),
        *sampled(4, 0),
    ]
    assert critical_paths(events) == {(0,): 5 + 20 + 4}


def test_a_slow_parent_is_its_own_longest_chain() -> None:
    events = [opened(0), opened(0, 0), *sampled(2, 0, 0), *sampled(30, 0), joined((0,), (0, 0)), *sampled(1, 0)]
    assert critical_paths(events) == {(0,): 31}


def test_levels_add_up_and_trees_do_not() -> None:
    events = [
        opened(0),
        opened(7),
        *sampled(4, 7),
        *sampled(1, 0),
        opened(0, 0),
        *sampled(2, 0, 0),
        opened(0, 0, 0),
        *sampled(3, 0, 0, 0),
        joined((0, 0), (0, 0, 0)),
        *sampled(4, 0, 0),
        joined((0,), (0, 0)),
    ]
    assert critical_paths(events) == {(0,): 1 + 2 + 3 + 4, (7,): 4}


def test_a_child_nobody_waited_for_is_a_chain_of_its_own() -> None:
    events = [opened(0), *sampled(1, 0), opened(0, 0), *sampled(9, 0, 0), *sampled(2, 0)]
    assert critical_paths(events) == {(0,): 10}
