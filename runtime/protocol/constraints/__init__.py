"""Tokens that are constrained: schemas, regular expressions, choices and grammars, by llguidance."""

from runtime.protocol.constraints.compiling import check_constraint
from runtime.protocol.constraints.matchers import Matchers

__all__ = ["Matchers", "check_constraint"]
