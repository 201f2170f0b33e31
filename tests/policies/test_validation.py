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
    ChildBudget,
    DepthPolicy,
    EvenBudget,
    Fixed,
    LatentDiff,
    Limits,
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
    (lambda: LatentDiff(every=0), "every is 0; give a whole number of at least 1"),
    (lambda: LatentDiff(minimum=-1), "minimum is -1; give a whole number of at least 0"),
    (lambda: LatentDiff(minimum=8, most=8), r"minimum \(8\) leaves no iteration to test before most \(8\)"),
    (lambda: Fixed(0), "Fixed: most is 0; give a whole number of at least 1"),
    (lambda: Fixed(2.5), "most is 2.5; give a whole number"),  # type: ignore[arg-type]
    (lambda: Fixed(True), "most is True; give a whole number"),
    (lambda: Fixed(4, minimum=1, threshold=0.5), "Fixed has no use for minimum, threshold; it tests nothing"),
    (lambda: LatentDiff(carry="last"), "LatentDiff: carry is 'last'; give one of 'none', 'raw', 'normed'"),  # type: ignore[arg-type]
    (lambda: ByRole(carry="raw"), "ByRole has no use for carry"),
    (lambda: EvenBudget(LatentDiff(carry="raw"), carry="normed"), "carry is 'normed', but its criterion's is 'raw'"),
    (lambda: Speculative(0), "Speculative: draft is 0; give a whole number of at least 1"),
    (lambda: Speculative(look=0), "Speculative: look is 0"),
    (lambda: Speculative(4, most=4), r"draft \(4\) leaves nothing to verify before most \(4\); lower draft"),
    (lambda: Speculative(2, minimum=1), "Speculative has no use for minimum; all its tokens go to the same depth"),
    (lambda: Speculative(2, carry="raw"), "Speculative has no use for carry"),
    (lambda: ArgmaxStability(0), "ArgmaxStability: threshold is 0; give a whole number of at least 1"),
    (lambda: ArgmaxStability(0.5), "threshold is 0.5; give a whole number"),  # type: ignore[arg-type]
    (lambda: ByRole(most=4), "ByRole has no use for most; give it to the policies that ByRole holds"),
    (lambda: ByRole(root=4), "ByRole: root is 4; give a DepthPolicy"),  # type: ignore[arg-type]
    (lambda: ByRole(by_tree_depth=(Fixed(1), None)), r"by_tree_depth\[1\] is None"),  # type: ignore[arg-type]
    (lambda: EvenBudget(LatentDiff(most=4), most=5), r"EvenBudget\(LatentDiff\(most=5\)\)"),
    (lambda: EvenBudget(LatentDiff(), every=3), r"give it to the criterion: EvenBudget\(LatentDiff\(every=3\)\)"),
    (lambda: EvenBudget(ByRole(), most=5), "ByRole has no use for most"),
    (lambda: EvenBudget(LatentDiff), r"is the class LatentDiff; give LatentDiff\(...\)"),  # type: ignore[arg-type]
    (lambda: ByLoad(calm=2.0, busy=2.0), "give 0 <= calm < busy"),
    (lambda: ByLoad(calm=float("nan")), "calm is nan"),
    (lambda: ByLoad(least=0), "ByLoad: least is 0"),
    (lambda: ChildBudget(-1), "children is -1"),
    (lambda: SelfConsistency(0), "SelfConsistency: samples is 0; give a whole number of at least 1"),
    (lambda: ByEntropy(-1.0), "ByEntropy: threshold is -1.0"),
    (lambda: ByEntropy(1.0, -1), "at_most is -1"),
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
    assert Fixed(6).most == 6
    assert ChildBudget(10).children == 10
    assert Policy() == Policy(depth=Fixed(), spawn=Policy().spawn)
    assert repr(Policy(depth=LatentDiff(0.05, minimum=2))) == "Policy(depth=LatentDiff(threshold=0.05, minimum=2))"


def test_policies_compare_by_class_and_content_and_hash() -> None:
    assert LatentDiff(0.1) == LatentDiff(0.1) != LatentDiff(0.2)
    criteria: list[DepthPolicy] = [LatentDiff(0.001), KL(0.001)]
    assert criteria[0] != criteria[1]
    assert len({Fixed(2), Fixed(2), Fixed(3), ByRole(by_tree_depth=[Fixed(2)])}) == 3  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        Fixed(2).most = 3  # type: ignore[misc]


def test_policies_print_as_one_would_write_them() -> None:
    assert (
        repr(EvenBudget(LatentDiff(0.05, minimum=2))) == "EvenBudget(criterion=LatentDiff(threshold=0.05, minimum=2))"
    )
    assert repr(ByRole(by_tree_depth=(Fixed(2),))) == "ByRole(by_tree_depth=(Fixed(most=2),))"
    assert repr(ByLoad(Fixed(), calm=1.0)) == repr(ByLoad()) == "ByLoad()"
    assert repr(ChildBudget(10)) == "ChildBudget(children=10)"
