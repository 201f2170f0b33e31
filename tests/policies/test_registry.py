"""Policies as plain data and back, a user's own included."""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import (
    KL,
    AllChildren,
    ArgmaxStability,
    BestOf,
    Bounding,
    ByEntropy,
    ByLoad,
    ByRole,
    BySlack,
    Cosine,
    DepthPolicy,
    EntropyDiff,
    EntropySwitch,
    EvenBudget,
    Fixed,
    LatentDiff,
    MaxChildren,
    MinPKL,
    NoChildren,
    Policy,
    SelectPolicy,
    SelfConsistency,
    SpawnPolicy,
    Speculative,
    from_builtins,
    from_json,
    to_builtins,
    to_json,
)
from policies.registry import known


class Schedule(DepthPolicy, frozen=True):
    """A user's policy with policies inside of tuples and unions, and a mapping without."""

    levels: Annotated[tuple[DepthPolicy | None, ...], "by day"] = ()
    weights: dict[int, float] = msgspec.field(default_factory=dict)
    pair: tuple[LatentDiff, SpawnPolicy] | None = None
    late: DepthPolicy | int = 3


counts = st.integers(1, 100)
thresholds = st.floats(0, 10, allow_nan=False)
tests = st.fixed_dictionaries(
    {},
    optional={
        "min_iterations": st.integers(0, 3),
        "max_iterations": st.integers(4, 99),
        "check_every": counts,
        "exit_received": st.booleans(),
        "carry": st.sampled_from(["none", "raw", "normed"]),
    },
)
simple = st.one_of(
    st.builds(Fixed, st.none() | counts),
    st.builds(Speculative, counts, counts, adaptive=st.booleans()),
    st.builds(EntropySwitch, thresholds, counts),
    st.builds(ArgmaxStability, counts),
    *(
        st.builds(lambda threshold, rest, kind=kind: kind(threshold, **rest), thresholds, tests)
        for kind in (LatentDiff, Cosine, KL, MinPKL, EntropyDiff)
    ),
)


def combined(inner: st.SearchStrategy[DepthPolicy]) -> st.SearchStrategy[DepthPolicy]:
    maybe = st.none() | inner
    return st.one_of(
        st.builds(
            ByRole, root=maybe, parent=maybe, child=maybe, by_tree_depth=st.lists(inner, max_size=3), otherwise=inner
        ),
        st.builds(EvenBudget, inner),
        st.builds(ByLoad, inner, least=counts),
        st.builds(
            Schedule,
            levels=st.lists(maybe, max_size=2).map(tuple),
            weights=st.dictionaries(st.integers(), thresholds, max_size=2),
            pair=st.none() | st.tuples(st.builds(LatentDiff, thresholds), st.just(NoChildren())),
            late=inner | counts,
        ),
    )


depths = st.recursive(simple, combined, max_leaves=6)
samples = st.integers(1, 9)
spawns = st.one_of(
    st.builds(AllChildren, st.none() | counts),
    st.just(NoChildren()),
    st.builds(MaxChildren, counts),
    st.builds(ByEntropy, thresholds, st.none() | counts),
    st.builds(BySlack, st.floats(0.01, 100), counts, st.floats(0, 0.9)),
)
selects = st.builds(SelfConsistency, samples) | st.builds(BestOf, samples)
policies = depths | spawns | selects | st.builds(Policy, depth=depths, spawn=spawns, select=st.none() | selects)


@given(policies)
def test_round_trips(policy: Any) -> None:
    data = to_builtins(policy)
    assert from_builtins(data) == policy
    assert repr(from_builtins(data)) == repr(policy)
    text = to_json(policy)
    assert json.loads(text) is not None
    assert from_json(text) == from_json(text.decode()) == policy
    assert to_json(from_json(text)) == text


def test_what_is_left_out_takes_its_default() -> None:
    assert from_json('{"type": "LatentDiff"}', DepthPolicy) == LatentDiff()
    text = '{"type": "Policy", "depth": {"type": "ByRole", "root": {"type": "LatentDiff", "threshold": 0.01}}}'
    assert from_json(text, Policy) == Policy(depth=ByRole(root=LatentDiff(0.01)))


def test_every_public_policy_is_known() -> None:
    assert set(known(DepthPolicy)) >= {
        *("Fixed", "LatentDiff", "Cosine", "KL", "MinPKL", "EntropyDiff", "ArgmaxStability"),
        *("ByRole", "EvenBudget", "ByLoad", "Schedule"),
    }
    assert set(known(SpawnPolicy)) >= {"AllChildren", "NoChildren", "MaxChildren", "ByEntropy", "BySlack"}
    assert set(known(SelectPolicy)) >= {"SelfConsistency", "BestOf"}
    assert known(SpawnPolicy).keys().isdisjoint(known(DepthPolicy))


BAD: list[tuple[object, type[Any] | None, str]] = [
    (
        5,
        None,
        r"policy: expected an object such as .* for a Policy or .* or SelectPolicy, found 5",
    ),
    ({"threshold": 1}, None, 'policy: "type" is missing'),
    ({"type": "Latent"}, DepthPolicy, "'Latent' is no known DepthPolicy; known are .*LatentDiff.* once the module"),
    ({"type": ["Fixed"]}, None, r"\['Fixed'\] is no known"),
    ({"type": "AllChildren"}, DepthPolicy, "'AllChildren' is no known DepthPolicy"),
    ({"type": "Fixed", "depth": 3}, None, "policy: Fixed has no field 'depth'; it has max_iterations,"),
    ({"type": "MaxChildren"}, None, "policy: MaxChildren needs children"),
    ({"type": "Fixed", "max_iterations": "x"}, None, "policy.max_iterations: Expected `int | null`, got `str`"),
    ({"type": "LatentDiff", "threshold": -1}, None, "policy: LatentDiff: threshold is -1"),
    ({"type": "Policy", "depth": {"type": "Nope"}}, None, "policy.depth: 'Nope' is no known DepthPolicy"),
    ({"type": "ByRole", "root": {"type": "Nope"}}, None, "policy.root: 'Nope' is no known"),
    ({"type": "ByRole", "by_tree_depth": {"type": "Fixed"}}, None, "policy.by_tree_depth: expected a list"),
    (
        {"type": "ByRole", "by_tree_depth": [{"type": "Fixed"}, 3]},
        None,
        r"policy.by_tree_depth\[1\]: expected an object",
    ),
    ({"type": "Schedule", "levels": {}}, None, "policy.levels: expected a list"),
    ({"type": "Schedule", "weights": {"x": 1}}, None, "policy.weights: Expected `int`"),
    (
        {"type": "Schedule", "pair": [{"type": "LatentDiff"}]},
        None,
        "policy.pair: expected 2 items, found 1",
    ),
    (
        {"type": "Schedule", "pair": [{"type": "KL"}, {"type": "AllChildren"}]},
        None,
        r"policy.pair\[0\]: 'KL' is no known LatentDiff",
    ),
    (
        {"type": "Schedule", "late": "x"},
        None,
        "policy.late: expected an object .* Or policy.late: Expected `int`",
    ),
]


@pytest.mark.parametrize(("data", "kind", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_data_names_the_place_and_the_reason(data: object, kind: type[Any] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_builtins(data) if kind is None else from_builtins(data, kind)


def test_text_that_is_no_json() -> None:
    with pytest.raises(ValueError, match="policy: not valid JSON"):
        from_json("{")


def test_a_class_defined_later_is_known_at_once() -> None:
    data = {"type": "DefinedLater", "pace": 4}
    with pytest.raises(ValueError, match="'DefinedLater' is no known"):
        from_builtins(data)

    class DefinedLater(DepthPolicy, frozen=True):
        pace: int

    assert from_builtins(data) == DefinedLater(4)
    assert from_builtins(to_builtins(EvenBudget(DefinedLater(5)))) == EvenBudget(DefinedLater(5))


def test_two_classes_of_one_name_are_told_apart_by_nobody() -> None:
    def one() -> type[DepthPolicy]:
        class Twin(DepthPolicy, frozen=True):
            pass

        return Twin

    def other() -> type[SpawnPolicy]:
        class Twin(SpawnPolicy, frozen=True):
            pass

        return Twin

    first, second = one(), other()
    with pytest.raises(ValueError, match=r"'Twin' is the name of several classes: .*one.<locals>.Twin, .*other"):
        from_builtins({"type": "Twin"})
    assert type(from_builtins({"type": "Twin"}, DepthPolicy)) is first
    assert type(from_builtins({"type": "Twin"}, SpawnPolicy)) is second


def test_a_class_declares_a_tag_of_its_own() -> None:
    class Renamed(DepthPolicy, frozen=True, tag="own/tag"):
        pass

    assert to_builtins(Renamed())["type"] == "own/tag"
    assert from_json(to_json(Renamed())) == Renamed()


def test_a_module_run_again_replaces_its_classes() -> None:
    source = "from policies import DepthPolicy\nclass Reloaded(DepthPolicy, frozen=True):\n    pace: int = {}\n"
    spaces: list[dict[str, Any]] = [{"__name__": __name__}, {"__name__": __name__}]
    for number, space in enumerate(spaces):
        exec(source.format(number), space)
    assert from_builtins({"type": "Reloaded"}) == spaces[1]["Reloaded"](1)


def test_a_policy_with_a_function_for_a_field_cannot_be_written_down() -> None:
    class WithCode(DepthPolicy, frozen=True):
        rule: Any = None

    with pytest.raises(TypeError, match=r"WithCode cannot be written down: .*code belongs in its methods"):
        to_builtins(WithCode(lambda: 3))


def test_bases_round_trip_too() -> None:
    for policy in (DepthPolicy(max_iterations=3), SpawnPolicy(), Bounding(KL()), SelectPolicy(2)):
        assert from_builtins(to_builtins(policy)) == policy


def test_policies_in_a_container_that_does_not_hash_are_refused() -> None:
    class Unhashable(DepthPolicy, frozen=True):
        parts: list[DepthPolicy]

    with pytest.raises(ValueError, match=r"policy.parts: a field of type list.* hold policies in tuples"):
        from_builtins(to_builtins(Unhashable([KL()])))
