"""Policies and samplings as people write them on a command line: `LatentDiff(0.1)`, `temperature=0.7,top_p=0.9`.

Nothing is executed: an expression is a call of a known policy with numbers, strings and other policies in it, or names
that stand for numbers.
"""

from __future__ import annotations

import argparse
import ast
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

import policies
from policies import DepthPolicy, SelectPolicy, SpawnPolicy
from runtime import Sampling

KINDS: Mapping[str, type[Any]] = {"depth": DepthPolicy, "spawn": SpawnPolicy, "select": SelectPolicy}


def policy_of(kind: str, text: str, values: Mapping[str, float]) -> Any:
    """A policy of a kind, "depth", "spawn" or "select", as it is written, with numbers for the names in it.

    Raises `ValueError` for what is none.
    """
    try:
        made = _made(ast.parse(text.strip(), mode="eval").body, values)
    except SyntaxError as error:
        raise ValueError(f"{text!r} is no expression; write it as LatentDiff(0.1)") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{text!r}: {str(error).rstrip('.')}") from error
    if not isinstance(made, KINDS[kind]):
        known = (name for name in policies.__all__ if _is_policy(getattr(policies, name), KINDS[kind]))
        raise ValueError(f"{text!r} is no {kind} policy; there are {', '.join(sorted(known))}")
    return made


def sweep_of(text: str) -> tuple[str, list[float]]:
    """An argparse type: `threshold=0.01:0.3:8`, from, to and how many, or `threshold=0.01,0.1,0.3`."""
    name, _, given = text.partition("=")
    try:
        if not name.isidentifier():
            raise ValueError("it begins with no name")
        if ":" in given:
            first, last, count = given.split(":")
            if not math.isfinite(float(first)) or not math.isfinite(float(last)):
                raise ValueError("it has no end")
            values = np.linspace(float(first), float(last), int(count)).tolist()
        else:
            values = [float(value) for value in given.split(",")]
        if not values or not np.isfinite(values).all():
            raise ValueError("it has no numbers, or some without end")
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}; write it as threshold=0.01:0.3:8") from error
    # Whole numbers, because iterations and children are counted.
    return name, [int(value) if value == int(value) else value for value in values]


def sampling_of(text: str) -> Sampling:
    """An argparse type: fields of `Sampling`, such as `temperature=0.7,top_p=0.9`."""
    try:
        call = ast.parse(f"Sampling({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("give fields by their names")
        return Sampling(**{str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords})
    except (SyntaxError, ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: {str(error).rstrip('.')}; write it as temperature=0.7,top_p=0.9"
        ) from error


def _made(node: ast.expr, values: Mapping[str, float]) -> Any:
    if isinstance(node, ast.Name) and node.id in values:
        return values[node.id]
    if isinstance(node, ast.Name):
        node = ast.Call(node, [], [])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        found: Any = getattr(policies, node.func.id, None)
        if not any(_is_policy(found, kind) for kind in KINDS.values()):
            raise ValueError(f"there is no policy {node.func.id}")
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("** is not understood")
        return found(
            *(_made(each, values) for each in node.args),
            **{str(keyword.arg): _made(keyword.value, values) for keyword in node.keywords},
        )
    return ast.literal_eval(node)


def _is_policy(found: object, kind: type[Any]) -> bool:
    return isinstance(found, type) and issubclass(found, kind) and found is not kind
