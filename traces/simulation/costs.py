"""What calls of a device take, over what they do: fitted to recorded ones, or read from a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from runtime import CallWork, HostWork, TraceError
from traces.simulation.call_times import CallTimes, Floats

LANE_KNOTS = (8, 32, 64, 128, 256)
"""Tokens in flight from which on another one may cost more."""
KEY_KNOTS = (2_000, 8_000, 32_000)
"""Keys a tick from which on another one may cost more: more than caches hold, say."""
LEAST_CALLS = 32
"""Fewer tell nothing."""
MOST_TICKS = 200_000
"""Ticks that a fit looks at; of longer traces, those of some calls, evenly spread."""


class Range(msgspec.Struct, frozen=True):
    """What was seen of a tick."""

    least: float
    greatest: float


class FitError(msgspec.Struct, frozen=True):
    """How far fitted costs are from what they were fitted to."""

    median: float
    """Relative, of single ticks or pauses; so is `p90`, which nine in ten do not exceed."""
    p90: float


class DeviceCosts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a device, as `runtime.VirtualCosts` wants them; a JSON file of it is a device.

    A call takes `call`, `call_entering` for each token that enters with it, and for each of its ticks `tick` and what
    is in it: `lanes[i]` for each token in flight beyond `lane_knots[i]`, `keys[i]` for each key beyond `key_knots[i]`
    that queries of a layer read, `entering` and `leaving` for each token that does.
    """

    machine: str
    checkpoint: str
    """Whose costs they are."""
    call: float
    call_entering: float
    tick: float
    lane_knots: tuple[int, ...]
    lanes: tuple[float, ...]
    key_knots: tuple[int, ...]
    keys: tuple[float, ...]
    entering: float
    leaving: float
    host_call: float
    """Of the device thread between two calls, and `host_stopped` for each thread that is asked about, `host_entering`
    for each that goes on, `host_command` for each command."""
    host_stopped: float
    host_entering: float
    host_command: float
    hop: float
    """From a report to a program's answer."""
    calls: int
    """How many it was fitted to."""
    in_flight: Range
    """Of all ticks there were."""
    keys_read: Range
    call_error: FitError
    host_error: FitError

    def __post_init__(self) -> None:
        seconds = (*self.lanes, *self.keys, *(getattr(self, name) for name in _SECONDS))
        if not all(math.isfinite(each) and each >= 0 for each in seconds):
            raise ValueError("costs are seconds of at least 0")
        for knots, slopes in ((self.lane_knots, self.lanes), (self.key_knots, self.keys)):
            if len(knots) != len(slopes) or not knots or any(one >= other for one, other in pairwise(knots)):
                raise ValueError("there is one cost for each knot, and knots ascend")
        if self.call + self.tick + self.host_call <= 0:
            raise ValueError("calls take some time")

    @property
    def figures(self) -> dict[str, tuple[tuple[int, float], ...]]:
        """What each thing takes, for people: seconds of one more, from each knot on."""
        return {
            "a tick": ((0, self.tick),),
            "a token in flight": _steps(self.lane_knots, self.lanes),
            "a key": _steps(self.key_knots, self.keys),
            "entering": ((0, self.entering),),
            "leaving": ((0, self.leaving),),
            "a call": ((0, self.call + self.host_call),),
            "a token that enters with it": ((0, self.call_entering + self.host_entering),),
            "a lane that stopped": ((0, self.host_stopped),),
            "a command": ((0, self.host_command),),
            "a program's answer": ((0, self.hop),),
        }

    def call_seconds(self, work: CallWork) -> float:
        ticks = work.ticks
        in_flight, keys = ticks.in_flight, ticks.keys
        seconds = self.call + self.call_entering * work.entering + self.tick * len(in_flight)
        seconds += self.entering * float(ticks.entered.sum()) + self.leaving * float(ticks.left.sum())
        return seconds + _bent(in_flight, self.lane_knots, self.lanes) + _bent(keys, self.key_knots, self.keys)

    def host_seconds(self, work: HostWork) -> float:
        return (
            self.host_call
            + self.host_stopped * work.stopped
            + self.host_entering * work.entering
            + self.host_command * work.commands
        )

    def covers(self, in_flight: int, keys: int) -> bool:
        """Whether ticks of so much were among those that it was fitted to, or less than some of them."""
        return in_flight <= self.in_flight.greatest and keys <= self.keys_read.greatest


_SECONDS = (
    "call",
    "call_entering",
    "tick",
    "entering",
    "leaving",
    "host_call",
    "host_stopped",
    "host_entering",
    "host_command",
    "hop",
)


def fit_costs(times: CallTimes, *, machine: str, checkpoint: str) -> DeviceCosts:
    """Costs by non-negative least squares, as of sums whose variance grows as they do.

    Raises `TraceError` where there are too few calls, and `ImportError`, saying what to install, without scipy.
    """
    if len(times.first) < LEAST_CALLS:
        raise TraceError(
            f"{len(times.first)} calls of the device are recorded; costs are fitted to at least {LEAST_CALLS}. Record "
            "more, or name a device: python -m benchmarks device --json FILE."
        )
    greatest = float(times.in_flight.max()), float(times.keys.max())
    lane_knots = (0, *(knot for knot in LANE_KNOTS if knot < greatest[0]))
    key_knots = (0, *(knot for knot in KEY_KNOTS if knot < greatest[1]))
    bends = _bent_columns(times.in_flight, lane_knots), _bent_columns(times.keys, key_knots)
    count = len(times.in_flight)
    is_last, enters = np.zeros(count), np.zeros(count)
    last = np.append(times.first[1:], count) - 1
    is_last[last], enters[last] = 1.0, times.entering
    columns = (np.ones(count), *bends[0], *bends[1], times.entered, times.left, is_last, enters)
    some = _some_calls(times)
    tick, call_error = _fitted(np.stack([column[some] for column in columns], axis=1), times.seconds[some])
    busy = ~np.isnan(times.pause)
    host_columns = (np.ones(len(last)), times.stopped, times.entering, times.commands)
    if busy.any():
        host, host_error = _fitted(np.stack(host_columns, axis=1)[busy], times.pause[busy])
    else:
        host, host_error = np.zeros(4), FitError(0.0, 0.0)
    lanes, keys = 1 + len(lane_knots), 1 + len(lane_knots) + len(key_knots)
    entering, leaving, call, call_entering = tick[keys:].tolist()
    # Without a pause in which nobody had anything to do, a program answers as fast as the device thread goes on.
    hop = times.hop if math.isfinite(times.hop) else float(host[0])
    return DeviceCosts(
        machine=machine,
        checkpoint=checkpoint,
        call=call,
        call_entering=call_entering,
        tick=float(tick[0]),
        lane_knots=lane_knots,
        lanes=_tuple(tick[1:lanes]),
        key_knots=key_knots,
        keys=_tuple(tick[lanes:keys]),
        entering=entering,
        leaving=leaving,
        host_call=float(host[0]),
        host_stopped=float(host[1]),
        host_entering=float(host[2]),
        host_command=float(host[3]),
        hop=hop,
        calls=len(last),
        in_flight=Range(float(times.in_flight.min()), greatest[0]),
        keys_read=Range(float(times.keys.min()), greatest[1]),
        call_error=call_error,
        host_error=host_error,
    )


class _Measured(msgspec.Struct):
    device: DeviceCosts | None = None


class _Report(msgspec.Struct):
    results: list[_Measured]


def read_costs(path: Path) -> DeviceCosts:
    """A device from its file, or from a report of `python -m benchmarks device`. Raises `TraceError`, saying what is
    wrong with it."""
    try:
        content = path.read_bytes()
        if b'"results"' not in content:
            return msgspec.json.decode(content, type=DeviceCosts)
        found = [each.device for each in msgspec.json.decode(content, type=_Report).results if each.device is not None]
        if not found:
            raise ValueError("the report has no benchmark `device`")
        return found[0]
    except (OSError, msgspec.DecodeError, ValueError) as error:
        raise TraceError(
            f"{path} is no device ({error}); python -m benchmarks device --json FILE makes one."
        ) from error


def _steps(knots: Sequence[int], slopes: Sequence[float]) -> tuple[tuple[int, float], ...]:
    return tuple(zip(knots, accumulate(slopes), strict=True))


def _bent(values: NDArray[np.int64], knots: Sequence[int], slopes: Sequence[float]) -> float:
    """The sum over ticks of a line that gets steeper at knots."""
    total = slopes[0] * float(values.sum())
    greatest = int(values.max()) if len(values) else 0
    for knot, slope in zip(knots[1:], slopes[1:], strict=True):
        if slope and greatest > knot:
            total += slope * float(np.maximum(0, values - knot).sum())
    return total


def _bent_columns(values: Floats, knots: Sequence[int]) -> list[Floats]:
    return [np.maximum(0.0, values - knot) for knot in knots]


def _some_calls(times: CallTimes) -> NDArray[np.bool_]:
    """By tick, whether it is one that the fit looks at."""
    every = math.ceil(len(times.in_flight) / MOST_TICKS)
    lengths = np.diff(np.append(times.first, len(times.in_flight)))
    return np.repeat(np.arange(len(lengths)) % every == 0, lengths)


def _fitted(columns: Floats, seconds: Floats) -> tuple[Floats, FitError]:
    """Coefficients, from a first fit and, with weights by what that says, a second one: all seconds together are then
    as predicted, and small ones count too."""
    found = _non_negative(columns, seconds)
    floor = max(float(seconds.mean()) / 100, 1e-9)
    for _ in range(2):
        weights = np.maximum(columns @ found, floor) ** -0.5
        found = _non_negative(columns * weights[:, None], seconds * weights)
    error = np.abs(columns @ found - seconds) / np.maximum(seconds, floor)
    return found, FitError(*(float(each) for each in np.quantile(error, (0.5, 0.9))))


def _non_negative(columns: Floats, values: Floats) -> Floats:
    """The x >= 0 [n] for which |columns x - values| is least, of columns [m, n] and values [m]."""
    try:
        from scipy.optimize import nnls
    except ImportError as error:
        raise ImportError("Costs are fitted by scipy: pip install 'braid-runtime[simulate]'.") from error
    scale = np.linalg.norm(columns, axis=0)
    scale[scale == 0] = 1.0
    found: Floats = nnls(columns / scale, values)[0]
    return found / scale


def _tuple(values: Floats) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
