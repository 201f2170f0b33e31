"""Constraints as grammars of llguidance, and what is wrong with those that are none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec

from runtime.errors import ConstraintError
from runtime.link.constraints import Constraint

if TYPE_CHECKING:
    import llguidance
    from llguidance._lib import JsonCompileOptions

_PLAIN_JSON: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As Python writes JSON: with white space of any length, texts of a bounded schema could go on for ever. A schema's own
"x-guidance" counts before it."""

_NAMES = {
    "json_schema": "json_schema is no schema that can be followed",
    "regex": "regex is no regular expression that can be followed",
    "choices": "choices cannot be followed",
    "grammar": "grammar is none that can be followed",
}


def library() -> type[llguidance.LLMatcher]:
    """llguidance's matcher. Raises `ImportError`, saying how to get it, where it is not installed."""
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise ImportError("Constrained tokens need llguidance: pip install 'braid-runtime[constrain]'.") from error
    return LLMatcher


def check_constraint(constraint: Constraint) -> None:
    """Raises `ConstraintError`, saying what is wrong, for what is no schema, expression or grammar, and `ImportError`
    where llguidance is not installed."""
    if problem := library().validate_grammar(grammar_of(constraint)):
        if problem.startswith("WARNING"):
            return
        raise refused(constraint.kind, problem)


def refused(name: str, problem: str) -> ConstraintError:
    """What is said of a constraint of this kind that llguidance refuses; the rest of what it says is its own state."""
    said = " ".join(problem.split("<state>")[0].split())
    return ConstraintError(f"{_NAMES[name]}: {said[:400]}")


def grammar_of(constraint: Constraint, before: str = "") -> str:
    """A constraint as llguidance takes it, after a text that always comes first.

    Raises `ConstraintError` for a schema that is no JSON object.
    """
    matcher = library()
    if constraint.kind == "json_schema":
        inner = matcher.grammar_from_json_schema(constraint.form, defaults=_PLAIN_JSON)
    elif constraint.kind == "choices":
        options = msgspec.json.decode(constraint.form, type=list[str])
        inner = matcher.grammar_from_lark("start: " + " | ".join(json.dumps(option) for option in options))
    elif constraint.kind == "regex":
        inner = matcher.grammar_from_regex(constraint.form)
    else:
        inner = matcher.grammar_from_lark(constraint.form)
    if not before:
        return inner
    in_lark = constraint.kind in ("choices", "grammar")
    grammars = [{"lark_grammar": inner}] if in_lark else json.loads(inner)["grammars"]
    grammars[0]["name"] = "constrained"
    start = f"start: {json.dumps(before)} @constrained"
    return json.dumps({"grammars": [{"lark_grammar": start}, *grammars]})
