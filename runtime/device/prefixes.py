"""Which leading pages of a prompt can be shared between threads, and under what key they are found.

A page may be shared if computing it again would give the same content: same leading tokens, same depth of each.
Where the depth policy is constant, that is all the key holds. Where tokens exit by a test, all tokens of a group
exit together, so the key holds the policy's number and every token up to the end of the page's group. Whether sampled
tokens carry their predecessor's latent state is of no matter: a prompt's tokens do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from itertools import count

import msgspec

from policies.depth.base import DepthPolicy
from runtime.device.bounds import constant_bound
from runtime.device.sequence import Sequence

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
    """The rules of the policies that threads follow. Policies that exit by tests share pages if they are equal, which
    those of two classes never are, whatever the classes are called."""

    def __init__(self, mean_recurrence: int) -> None:
        self._mean_recurrence = mean_recurrence
        self._numbers: dict[DepthPolicy, int] = {}
        """Of the policies that test, longest unused first."""
        self._next = count()

    def rule_of(self, policy: DepthPolicy) -> PrefixRule | None:
        """None for policies whose bounds depend on load or budget: their pages are not shared."""
        bound = constant_bound(policy, self._mean_recurrence)
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


def page_keys(sequence: Sequence, rule: PrefixRule, page_size: int, chunk: int) -> Iterator[bytes]:
    """Keys of the full pages of a sequence's prompt, from the first; extends `sequence.page_keys` as it goes.

    The prompt is the first span received; groups are its pieces of `chunk` tokens, a multiple of the page size.
    """
    if not sequence.spans or sequence.spans[0].sampled:
        return
    prompt_end = sequence.spans[0].end
    for number in range(prompt_end // page_size):
        if number == len(sequence.page_keys):
            start = number * page_size
            end = start + page_size
            if rule.tests:
                end = min(prompt_end, (start // chunk + 1) * chunk)
            before = sequence.page_keys[-1] if sequence.page_keys else rule.tag
            digest = blake2b(before, digest_size=16)
            digest.update(sequence.tokens[start:end].tobytes())
            sequence.page_keys.append(digest.digest())
        yield sequence.page_keys[number]
