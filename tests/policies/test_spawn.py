"""Which children run, and which of several answers is taken."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import (
    AllChildren,
    BestOf,
    ByEntropy,
    MaxChildren,
    NoChildren,
    Policy,
    SelectPolicy,
    SelfConsistency,
    SpawnPolicy,
    SpawnRequest,
    TreeView,
)

TREE = TreeView(threads=1, running=1, tokens=10, iterations=40, waiting=0)


def asks(policy: SpawnPolicy, index: int = 0, granted: int = 0, entropy: float = math.nan) -> bool:
    decision = policy.decide(SpawnRequest((0,), (5, 6), index, granted, entropy), TREE)
    assert (decision.depth, decision.limits) == (None, None)
    assert decision.run == (not decision.reason)
    return decision.run


def test_children_run_as_asked_or_not_at_all() -> None:
    assert all(asks(AllChildren(), number, number) for number in range(50))
    assert not any(asks(NoChildren(), number) for number in range(3))


@pytest.mark.parametrize("tree_depth", [0, 1, 2, None])
def test_children_run_down_to_a_level(tree_depth: int | None) -> None:
    parents = [(3,), (3, 0), (3, 0, 5), (3, 0, 5, 1)]
    ran = [AllChildren(tree_depth).decide(SpawnRequest(parent, (5,), 0, 0, math.nan), TREE).run for parent in parents]
    assert ran == [tree_depth is None or level <= tree_depth for level in (1, 2, 3, 4)]
    with pytest.raises(ValueError, match="AllChildren: tree_depth is -1"):
        AllChildren(-1)


def test_entropies_are_computed_only_for_policies_that_read_them() -> None:
    unread = (SpawnPolicy(), AllChildren(2), NoChildren(), MaxChildren(3))
    assert {policy.reads for policy in unread} == {"nothing"}
    assert ByEntropy(0.5).reads == "entropy"


@given(children=st.integers(0, 20), requests=st.integers(0, 40))
def test_a_child_budget_grants_the_first(children: int, requests: int) -> None:
    policy, granted = MaxChildren(children), 0
    for index in range(requests):
        runs = asks(policy, index, granted)
        assert runs == (index < children)
        granted += runs
    assert granted == min(children, requests)


@given(
    threshold=st.floats(0, 5),
    entropy=st.floats(0, 12),
    granted=st.integers(0, 6),
    at_most=st.none() | st.integers(0, 6),
)
def test_children_run_where_the_parent_is_unsure(
    threshold: float, entropy: float, granted: int, at_most: int | None
) -> None:
    policy = ByEntropy(threshold, at_most)
    has_room = at_most is None or granted < at_most
    assert asks(policy, granted, granted, entropy) == (has_room and entropy >= threshold)
    assert asks(policy, granted, granted, math.nan) == has_room


words = st.sampled_from(["1+2", " 1+2", "1+2\n", "3", "3 ", "", "  ", "4"])


@given(st.lists(words, min_size=1, max_size=12))
def test_the_majority_wins_and_ties_go_to_the_earliest(answers: list[str]) -> None:
    chosen = SelfConsistency(len(answers)).choose("prompt", answers)
    votes = Counter(answer.strip() for answer in answers if answer.strip())
    if not votes:
        assert chosen == 0
        return
    best = max(votes.values())
    winners = [index for index, answer in enumerate(answers) if votes[answer.strip()] == best and answer.strip()]
    assert chosen == winners[0]


def test_votes_by_example() -> None:
    vote = SelfConsistency(5)
    assert vote.samples == 5
    assert vote.choose("", ["a", "b", " b"]) == 1
    assert vote.choose("", ["", "", "b"]) == 2
    assert vote.choose("", ["a", "b", "b", "a"]) == 0
    assert vote.choose("", ["1 2", "12", "12"]) == 1
    assert vote.choose("", [" ", ""]) == 0


def test_best_of_takes_the_highest_score_and_the_earliest_among_equals() -> None:
    class Longest(BestOf, frozen=True):
        def score(self, prompt: str, answer: str) -> float:
            return math.nan if answer == "?" else len(answer) - len(prompt)

    best = Longest(4)
    assert best.samples == 4
    assert best.choose("ab", ["a", "abc", "xyz", ""]) == 1
    assert best.choose("ab", ["?", "", "?"]) == 1
    assert best.choose("ab", ["?", "?"]) == 0


def test_best_of_without_a_verifier_says_what_to_do() -> None:
    with pytest.raises(NotImplementedError, match=r"subclass of BestOf that defines score\(self, prompt, answer\)"):
        BestOf(2).choose("prompt", ["a", "b"])


def test_voting_is_no_spawn_policy() -> None:
    assert SelectPolicy(2).choose("prompt", ["a", "b"]) == 0
    assert Policy(select=SelfConsistency(3)).spawn == AllChildren()
    wrong: Any = SelfConsistency(3)
    with pytest.raises(ValueError, match="spawn"):
        Policy(spawn=wrong)
