"""A policy that makes no sense is refused when it is made, and says what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from policies import (
    KL,
    ArgmaxStability,
    ByEntropy,
    ByLoad,
    ByRole,
    DepthPolicy,
    EntropySwitch,
    EvenBudget,
    Fixed,
    LatentDiff,
    Limits,
    MaxChildren,
    NoChildren,
    Policy,
    SelfConsistency,
    Speculative,
)

REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: LatentDiff(-0.1), "LatentDiff: threshold is -0.1; give a finite number of at least 0"),
    (lambda: LatentDiff(float("nan")), "threshold is nan"),
    (lambda: KL(float("inf")), "threshold is inf"),
    (lambda: KL("0.1"), "threshold is '0.1'"),  # type: ignore[arg-type]
    (lambda: LatentDiff(check_every=0), "check_every is 0; give a whole number of at least 1"),
    (lambda: LatentDiff(min_iterations=-1), "min_iterations is -1; give a whole number of at least 0"),
    (
        lambda: LatentDiff(min_iterations=8, max_iterations=8),
        r"min_iterations \(8\) leaves no iteration to test before max_iterations \(8\)",
    ),
    (lambda: Fixed(0), "Fixed: max_iterations is 0; give a whole number of at least 1"),
    (lambda: Fixed(2.5), "max_iterations is 2.5; give a whole number"),  # type: ignore[arg-type]
    (lambda: Fixed(True), "max_iterations is True; give a whole number"),
    (
        lambda: Fixed(4, min_iterations=1, threshold=0.5),
        "Fixed has no use for min_iterations, threshold; it tests nothing",
    ),
    (lambda: LatentDiff(carry="last"), "LatentDiff: carry is 'last'; give one of 'none', 'raw', 'normed'"),  # type: ignore[arg-type]
    (lambda: ByRole(carry="raw"), "ByRole has no use for carry"),
    (lambda: EvenBudget(LatentDiff(carry="raw"), carry="normed"), "carry is 'normed', but its criterion's is 'raw'"),
    (lambda: Speculative(0), "Speculative: draft_iterations is 0; give a whole number of at least 1"),
    (lambda: Speculative(lookahead=0), "Speculative: lookahead is 0"),
    (
        lambda: Speculative(4, max_iterations=4),
        r"draft_iterations \(4\) leaves nothing to verify before max_iterations \(4\); lower draft_iterations",
    ),
    (
        lambda: Speculative(2, min_iterations=1),
        "Speculative has no use for min_iterations; all its tokens go to the same depth",
    ),
    (lambda: EntropySwitch(0.5, 0), "EntropySwitch: window is 0; give a whole number of at least 1"),
    (lambda: EntropySwitch(carry="raw"), "EntropySwitch has no use for carry"),
    (lambda: Speculative(2, carry="raw"), "Speculative has no use for carry"),
    (lambda: ArgmaxStability(0), "ArgmaxStability: threshold is 0; give a whole number of at least 1"),
    (lambda: ArgmaxStability(0.5), "threshold is 0.5; give a whole number"),  # type: ignore[arg-type]
    (
        lambda: ByRole(max_iterations=4),
        "ByRole has no use for max_iterations; give it to the policies that ByRole holds",
    ),
    (lambda: ByRole(root=4), "ByRole: root is 4; give a DepthPolicy"),  # type: ignore[arg-type]
    (lambda: ByRole(by_tree_depth=(Fixed(1), None)), r"by_tree_depth\[1\] is None"),  # type: ignore[arg-type]
    (
        lambda: EvenBudget(LatentDiff(max_iterations=4), max_iterations=5),
        r"EvenBudget\(LatentDiff\(max_iterations=5\)\)",
    ),
    (
        lambda: EvenBudget(LatentDiff(), check_every=3),
        r"give it to the criterion: EvenBudget\(LatentDiff\(check_every=3\)\)",
    ),
    (lambda: EvenBudget(ByRole(), max_iterations=5), "ByRole has no use for max_iterations"),
    (lambda: EvenBudget(LatentDiff), r"is the class LatentDiff; give LatentDiff\(...\)"),  # type: ignore[arg-type]
    (lambda: ByLoad(calm=2.0, busy=2.0), "give 0 <= calm < busy"),
    (lambda: ByLoad(calm=float("nan")), "calm is nan"),
    (lambda: ByLoad(least=0), "ByLoad: least is 0"),
    (lambda: MaxChildren(-1), "children is -1"),
    (lambda: SelfConsistency(0), "SelfConsistency: samples is 0; give a whole number of at least 1"),
    (lambda: ByEntropy(-1.0), "ByEntropy: threshold is -1.0"),
    (lambda: ByEntropy(1.0, -1), "max_children is -1"),
    (lambda: Policy(depth=LatentDiff), r"depth is the class LatentDiff; give LatentDiff\(...\)"),  # type: ignore[arg-type]
    (lambda: Policy(depth=NoChildren()), r"depth is NoChildren\(\); give a DepthPolicy"),  # type: ignore[arg-type]
    (lambda: Policy(spawn=Fixed()), r"spawn is Fixed\(\); give a SpawnPolicy"),  # type: ignore[arg-type]
    (lambda: Limits(tokens=-1), "Limits: tokens is -1; give a number of at least 0, or None"),
    (lambda: Limits(seconds=float("nan")), "Limits: seconds is nan"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_positional_arguments_and_defaults() -> None:
    assert LatentDiff(0.05).threshold == 0.05
    assert Fixed(6).max_iterations == 6
    assert MaxChildren(10).children == 10
    assert Policy() == Policy(depth=Fixed(), spawn=Policy().spawn)
    assert (
        repr(Policy(depth=LatentDiff(0.05, min_iterations=2)))
        == "Policy(depth=LatentDiff(threshold=0.05, min_iterations=2))"
    )


def test_policies_compare_by_class_and_content_and_hash() -> None:
    assert LatentDiff(0.1) == LatentDiff(0.1) != LatentDiff(0.2)
    criteria: list[DepthPolicy] = [LatentDiff(0.001), KL(0.001)]
    assert criteria[0] != criteria[1]
    assert len({Fixed(2), Fixed(2), Fixed(3), ByRole(by_tree_depth=[Fixed(2)])}) == 3  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        Fixed(2).max_iterations = 3  # type: ignore[misc]


def test_policies_print_as_one_would_write_them() -> None:
    assert (
        repr(EvenBudget(LatentDiff(0.05, min_iterations=2)))
        == "EvenBudget(criterion=LatentDiff(threshold=0.05, min_iterations=2))"
    )
    assert repr(ByRole(by_tree_depth=(Fixed(2),))) == "ByRole(by_tree_depth=(Fixed(max_iterations=2),))"
    assert repr(ByLoad(Fixed(), calm=1.0)) == repr(ByLoad()) == "ByLoad()"
    assert repr(MaxChildren(10)) == "MaxChildren(children=10)"
