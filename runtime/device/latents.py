"""The latent states of chosen threads: looked at after every tick, kept while their tokens are in flight, and written
when those have left.

    tick -> observe: rows of the lanes, projected -> held by flight -> take: the flight has left -> file

So a file has tokens that were computed to their end and counted, once: neither drafts that were wrong nor what an
eviction cut short, and nothing of what is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from runtime.device.latent_file import LatentFile
from runtime.device.sequence import Flight, Sequence
from runtime.link.commands import ThreadPath
from runtime.link.latents import Float32, Latents

if TYPE_CHECKING:
    from torch import Tensor

LOST_TEXT = 500
"""Most characters of a reason in the file's metadata."""


@dataclass(slots=True)
class _Held:
    """What is known of a flight: an array [tokens that are wanted, k] for each iteration."""

    flight: Flight
    states: list[Float32] = field(default_factory=list)


class LatentRecorder:
    """Belongs to the device thread. Neither looking nor writing raises: the first error is `failure`, and the end."""

    def __init__(self, asked: Latents, file: LatentFile) -> None:
        self._asked = asked
        self._file = file
        self._held: dict[int, _Held] = {}
        """By last lane, as long as no other flight is seen there."""
        self._directions: Float32 | None = None
        self._projection: Tensor | None = None
        self._is_ready = False
        self.failure: Exception | None = None
        self.is_watched: Callable[[ThreadPath], bool] = lru_cache(maxsize=4096)(self._is_watched)
        """Whether the states of a thread are wanted."""

    def _is_watched(self, path: ThreadPath) -> bool:
        name = ".".join(map(str, path))
        return any(fnmatchcase(name, pattern) for pattern in self._asked.threads)

    def flights(self, sequences: Iterable[Sequence]) -> list[Flight]:
        """Of these threads, what is in flight and is to be looked at after the tick."""
        if self.failure is not None:
            return []
        return [
            flight
            for sequence in sequences
            if self.is_watched(sequence.path)
            for flight in _in_flight(sequence)
            if not flight.known and len(self._wanted(flight))
        ]

    def observe(self, flights: list[Flight], states_of: Callable[[list[int]], Tensor]) -> None:
        """Takes the states of flights after one tick, in which each did an iteration or rested."""
        try:
            lanes = [flight.lanes[at] for flight in flights for at in self._wanted(flight)]
            rows = self._projected(states_of(lanes))
        except Exception as error:  # of memory, or of the device: answers do not depend on it
            self.failure = error
            return
        start = 0
        for flight in flights:
            held = self._held.get(flight.last_lane)
            if held is None or held.flight is not flight:
                held = self._held[flight.last_lane] = _Held(flight)
            end = start + len(self._wanted(flight))
            held.states.append(rows[start:end])
            start = end

    def take(self, flight: Flight) -> None:
        """Writes what a flight's tokens were, which have left."""
        held = self._held.pop(flight.last_lane, None)
        if held is None or held.flight is not flight or self.failure is not None:
            return
        wanted = self._wanted(flight)
        bounds = np.array(flight.bounds)[wanted]
        states = np.stack(held.states, axis=1)
        done = np.arange(states.shape[1]) < bounds[:, None]
        row, iteration = np.nonzero(done)
        tokens = np.array(flight.sequence.tokens[flight.start : flight.end], np.int32)[wanted]
        columns = (flight.start + np.array(wanted)[row], iteration + 1, tokens[row])
        try:
            self._file.append(flight.sequence.path, columns, states[done])
        except (OSError, ValueError) as error:
            self.failure = error

    def close(self, lost: str) -> None:
        """Puts the file together; `lost` says what it lacks, if anything. Raises `OSError`."""
        projection = "whole" if self._asked.dimensions is None else "random"
        about = {
            "format": "braid-latents 1",
            "projection": projection if self._asked.directions is None else "given",
            "seed": str(self._asked.seed),
            "lost": lost[:LOST_TEXT],
        }
        self._held.clear()
        self._file.close(self._directions, about)

    def abandon(self) -> None:
        """Gives the file up. Raises nothing."""
        self._held.clear()
        self._file.abandon()

    def _wanted(self, flight: Flight) -> range:
        """Which of a flight's tokens, from 0."""
        first, end = self._asked.positions
        last = flight.end if end is None else min(flight.end, end)
        return range(max(first - flight.start, 0), max(last - flight.start, 0))

    def _projected(self, states: Tensor) -> Float32:
        import torch

        with torch.inference_mode():
            states = states.float()
            if not self._is_ready:
                self._directions = self._asked.projection(states.shape[1])
                if self._directions is not None:
                    self._projection = torch.from_numpy(self._directions.T.copy()).to(states.device)
                self._is_ready = True
            if self._projection is not None:
                states = states @ self._projection
            rows: Float32 = states.cpu().numpy()
            return rows.copy() if self._projection is None else rows


def _in_flight(sequence: Sequence) -> Iterator[Flight]:
    if sequence.flight is not None:
        yield sequence.flight
    if sequence.chain is not None:
        yield from sequence.chain.flights
