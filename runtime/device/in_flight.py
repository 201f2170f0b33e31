"""Lanes: which are free, which hold whose tokens, and which the backend is to forget."""

from __future__ import annotations

from collections.abc import Iterable

from runtime.device.sequence import Flight, Sequence


class InFlight:
    """The lanes of an engine, and the flight of each thread in them. Drafted tokens' lanes are `Speculation`'s."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.free = list(range(lanes - 1, -1, -1))
        self.dropped: list[int] = []
        """Lanes that the backend is to forget in the next tick; free once it has."""
        self._by_last_lane: dict[int, Sequence] = {}

    def __len__(self) -> int:
        """Flights."""
        return len(self._by_last_lane)

    @property
    def occupied(self) -> int:
        """Lanes that hold a token."""
        return self.lanes - len(self.free) - len(self.dropped)

    def in_lane(self, lane: int) -> Sequence | None:
        """The thread whose flight ends in this lane."""
        return self._by_last_lane.get(lane)

    def threads(self) -> Iterable[Sequence]:
        """Those that have a flight."""
        return self._by_last_lane.values()

    def flights(self) -> list[Flight]:
        """Of all threads that have one, without drafts."""
        return [sequence.flight for sequence in self._by_last_lane.values() if sequence.flight is not None]

    def take_lanes(self, count: int) -> list[int] | None:
        """`count` free lanes, or None if there are not so many."""
        if count > len(self.free):
            return None
        lanes = self.free[-count:]
        del self.free[-count:]
        return lanes

    def begin(self, flight: Flight) -> None:
        """Makes a flight its thread's; its lanes are taken."""
        flight.sequence.flight = flight
        self._by_last_lane[flight.last_lane] = flight.sequence

    def end(self, flight: Flight) -> None:
        """Its tokens have left, or never entered: the lanes are free."""
        self._forget(flight)
        self.free.extend(flight.lanes)

    def drop(self, flight: Flight) -> None:
        """Its tokens are given up: the lanes are free once the backend, if it knows them, has forgotten them."""
        self._forget(flight)
        (self.dropped if flight.bounds else self.free).extend(flight.lanes)

    def backend_has_dropped(self) -> None:
        """A tick has been executed."""
        self.free.extend(self.dropped)
        self.dropped.clear()

    def all_lanes(self) -> list[int]:
        """Every lane that is known here, for looking in."""
        flying = [lane for one in self._by_last_lane.values() if one.flight is not None for lane in one.flight.lanes]
        return [*flying, *self.dropped, *self.free]

    def _forget(self, flight: Flight) -> None:
        del self._by_last_lane[flight.last_lane]
        flight.sequence.flight = None
