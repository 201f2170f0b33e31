"""Tokens that are constrained: schemas, regular expressions, choices and grammars, by llguidance."""

from runtime.protocol.constraints.asking import ConstraintOptions, constraint_of
from runtime.protocol.constraints.matchers import Matchers

__all__ = ["ConstraintOptions", "Matchers", "constraint_of"]
