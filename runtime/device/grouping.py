"""Which tokens enter together: sampled ones alone, received ones in chunks of their span."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.device.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Grouping:
    """How an engine cuts contexts into flights."""

    chunk: int
    """Most received tokens of a flight."""
    matters: bool
    """Whether a token's content depends on what was in flight with it."""

    def next_flight(self, sequence: Sequence) -> tuple[int, int]:
        """Positions of the tokens that enter together next.

        Tokens whose depths are known go back in larger pieces, except where a token's content depends on what was in
        flight with it or on its predecessor's last latent state.
        """
        start, end = self._next_flight(sequence)
        until = None if sequence.layout is None else sequence.layout.end(start)
        return start, end if until is None else min(end, until)

    def _next_flight(self, sequence: Sequence) -> tuple[int, int]:
        start, known = sequence.computed, len(sequence.depths)
        if start < known and not self.matters:
            return start, sequence.carrying_after(start, min(known, start + self.chunk))
        span = sequence.span_at(start)
        if span.sampled:
            return start, start + 1
        end = min(span.end, start + self.chunk - (start - span.start) % self.chunk)
        return start, min(end, known) if start < known else end

    def start_of(self, sequence: Sequence, position: int) -> int:
        """Where to begin, to compute the token at a position again as it was."""
        span = sequence.span_at(position)
        if self.matters and not span.sampled:
            return position - (position - span.start) % self.chunk
        return position

    def flight_end(self, position: int) -> int:
        """Where the flight of a prompt's token ends, if the prompt goes on so far."""
        return (position // self.chunk + 1) * self.chunk

    def whole_flights(self, length: int) -> int:
        """How many of a prompt's first `length` tokens are whole flights."""
        return length // self.chunk * self.chunk
