"""The latent states that were recorded beside a trace: read, and what of them is looked at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime import TraceError

Float32 = NDArray[np.float32]

FORMAT = "braid-latents 1"


@dataclass(frozen=True)
class TokenStates:
    """One token: the states that its iterations made."""

    position: int
    token: int
    states: Float32
    """[iterations, k]"""

    @property
    def depth(self) -> int:
        """Iterations."""
        return len(self.states)


class LatentStates:
    """What a file has; states are read from it where they are asked for, so it must stay there. See `read_latents`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        file = _opened(path)
        about = file.metadata() or {}
        names = set(file.keys())
        if about.get("format") != FORMAT or not {"states", "thread", "position", "iteration", "token"} <= names:
            raise TraceError(f"{path} has no latent states of a trace; its format is {about.get('format')!r}.")
        self._file = file
        self._states: Any = file.get_slice("states")
        self.threads: tuple[str, ...] = tuple(file.get_tensor("paths").tobytes().decode().split())
        """Paths of the threads in it, such as "0.2.1"."""
        self.directions: Float32 | None = file.get_tensor("directions") if "directions" in names else None
        """[k, width] of what states were projected to; None where they are whole."""
        self.lost: str | None = about.get("lost") or None
        """What was not recorded, and why; None for nothing."""
        thread, position, iteration = (file.get_tensor(name) for name in ("thread", "position", "iteration"))
        self._token = file.get_tensor("token")
        self._position = position
        starts = np.flatnonzero(iteration == 1)
        self._starts, self._ends = starts, np.append(starts[1:], len(iteration))
        self._thread = thread[starts]

    def of_thread(self, thread: str) -> list[TokenStates]:
        """The tokens that a thread has computed, by position; of several at one, the last. Raises `TraceError` for a
        thread that is not in it."""
        if thread not in self.threads:
            some = ", ".join(self.threads[:5]) + (", ..." if len(self.threads) > 5 else "")
            raise TraceError(f"{self.path} has no states of thread {thread}; it has those of {some or 'none'}.")
        rows = np.flatnonzero(self._thread == self.threads.index(thread))
        last = {int(self._position[self._starts[row]]): row for row in rows.tolist()}
        return [self._token_at(last[position]) for position in sorted(last)]

    def _token_at(self, row: int) -> TokenStates:
        start, end = int(self._starts[row]), int(self._ends[row])
        states: Float32 = self._states[start:end]
        return TokenStates(int(self._position[start]), int(self._token[start]), states)


def read_latents(path: str | os.PathLike[str]) -> LatentStates:
    """Opens a file of latent states, such as "run.trace.latents.safetensors". Raises `TraceError` for one that is
    missing or has none."""
    return LatentStates(Path(path).expanduser())


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TraceError(f"Cannot read the latent states {path}: {reason}.") from error


def log_distances(tokens: Sequence[TokenStates]) -> NDArray[np.float64]:
    """[tokens, iterations - 1] The natural logarithm of how far each state is from the token's last one; NaN behind the
    last but one, and where a state is the last one to the bit."""
    most = max((token.depth for token in tokens), default=1)
    found = np.full((len(tokens), max(most - 1, 0)), np.nan)
    for row, token in enumerate(tokens):
        far = np.linalg.norm(token.states[:-1].astype(np.float64) - token.states[-1], axis=1)
        with np.errstate(divide="ignore"):
            found[row, : len(far)] = np.where(far > 0, np.log(far), np.nan)
    return found


def principal_coordinates(tokens: Sequence[TokenStates], count: int = 2) -> list[NDArray[np.float64]]:
    """By token, its states [iterations, count] in the first principal directions of all; zero where there are fewer."""
    if not tokens:
        return []
    states = np.concatenate([token.states for token in tokens]).astype(np.float64)
    centred = states - states.mean(axis=0)
    # The directions are eigenvectors of a matrix as large as a state, whatever the number of states.
    _, directions = np.linalg.eigh(centred.T @ centred)
    chosen = directions[:, ::-1][:, :count]
    # Their sign has no meaning; fixed, so that a figure is the same every time.
    chosen = chosen * np.where(chosen[np.abs(chosen).argmax(axis=0), np.arange(chosen.shape[1])] < 0, -1.0, 1.0)
    placed = np.zeros((len(states), count))
    placed[:, : chosen.shape[1]] = centred @ chosen
    return np.split(placed, np.cumsum([token.depth for token in tokens])[:-1])
