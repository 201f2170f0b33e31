"""Under which depth policies pages can be shared between threads, and what of the policy their keys hold.

A page may be shared if computing it again would give the same content: same leading tokens, same depth of each.
Where the depth policy is constant, that is all the key holds. Where tokens exit by a test, all tokens of a flight
exit together, so the key holds the policy's number and every token up to the end of the page's flight. Whether sampled
tokens carry their predecessor's latent state is of no matter: a prompt's tokens do not.
"""

from __future__ import annotations

from itertools import count

import msgspec

from policies import DepthPolicy

MOST_KNOWN = 1024
"""Policies that are told apart at a time."""


class PrefixRule(msgspec.Struct, frozen=True):
    """How one depth policy's pages are keyed."""

    tag: bytes
    bound: int
    """Of every token; one that a limit bound lower is not as the policy would have it."""
    tests: bool
    """Whether tokens may exit before their bound."""


class PrefixRules:
    """The rules of the policies in charge of threads. Policies that exit by tests share pages if they are equal, which
    those of two classes never are, whatever the classes are called."""

    def __init__(self) -> None:
        self._numbers: dict[DepthPolicy, int] = {}
        """Of the policies that test, longest unused first."""
        self._next = count()

    def rule_of(self, policy: DepthPolicy, bound: int | None) -> PrefixRule | None:
        """The rule of a policy that bounds every token by `bound`.

        None where it looks at each token, at load or at a budget: its pages are not shared.
        """
        if bound is None:
            return None
        if policy.reads == "nothing" or not policy.exit_received:
            return PrefixRule(f"bound {bound}".encode(), bound, False)
        # Received tokens carry nothing.
        tested = msgspec.structs.replace(policy, carry="none")
        return PrefixRule(f"policy {self._number(tested)}".encode(), bound, True)

    def _number(self, policy: DepthPolicy) -> int:
        number = self._numbers.pop(policy, None)
        if number is None:
            number = next(self._next)
            if len(self._numbers) == MOST_KNOWN:
                # It gets another number when it comes again, and so shares nothing with what it did before.
                del self._numbers[next(iter(self._numbers))]
        self._numbers[policy] = number
        return number
