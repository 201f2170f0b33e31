"""Keys by which the full pages of a prompt are found again."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

from runtime.device.grouping import Grouping
from runtime.device.prefix_rule import PrefixRule
from runtime.device.sequence import Sequence


def page_keys(sequence: Sequence, rule: PrefixRule, page_size: int, grouping: Grouping) -> Iterator[bytes]:
    """Keys of the full pages of a sequence's prompt, from the first; extends `sequence.page_keys` as it goes.

    The prompt is the first span received; it enters in flights of whole pages.
    """
    if not sequence.spans or sequence.spans[0].sampled:
        return
    prompt_end = sequence.spans[0].end
    for number in range(prompt_end // page_size):
        if number == len(sequence.page_keys):
            start = number * page_size
            end = start + page_size
            if rule.tests:
                end = min(prompt_end, grouping.flight_end(start))
            before = sequence.page_keys[-1] if sequence.page_keys else rule.tag + b"long" * sequence.is_long
            digest = blake2b(before, digest_size=16)
            digest.update(sequence.tokens[start:end].tobytes())
            sequence.page_keys.append(digest.digest())
        yield sequence.page_keys[number]
