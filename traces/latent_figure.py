"""Latent states as a figure: how they converge, which way they go, and whether depth follows surprise.

Convergence and orbits are drawn as in arXiv 2502.05171 (Huginn): log distance to the last state over tokens and
iterations, and trajectories in the first principal directions of all states.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.console import visible
from runtime.link import Trace
from traces.context import context_of
from traces.latents import LatentStates, TokenStates, log_distances, principal_coordinates
from traces.printing import Decode
from traces.tree import path_name, thread_tree, walk_threads

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_TOKENS = 400
"""Tokens that are drawn: more are not told apart."""
MOST_LABELS = 48
MOST_ORBITS = 64

_GREY = "#7f7f7f"
"""Readable on light and on dark pages, as the background is neither."""


def latents_svg(
    trace: Trace, latents: LatentStates, thread: str, first: int = 0, count: int = 100, decode: Decode | None = None
) -> str:
    """One thread's figure as an SVG of its own: `count` of its tokens from position `first` on, at most 400.

    `decode` makes tokens text. Raises `TraceError` for a thread that has no states, `ValueError` where none of its
    tokens is in the range, and `ImportError`, saying what to install, without matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Figures need matplotlib: pip install 'braid-runtime[figures]'.") from error
    tokens = [token for token in latents.of_thread(thread) if token.position >= first][: min(count, MOST_TOKENS)]
    if not tokens:
        raise ValueError(f"Thread {thread} has no states from position {first} on; give another --first.")
    style: dict[Any, Any] = {
        "svg.hashsalt": "latents",
        "svg.fonttype": "none",
        "font.size": 8,
        "text.color": _GREY,
        "axes.labelcolor": _GREY,
        "axes.edgecolor": _GREY,
        "xtick.color": _GREY,
        "ytick.color": _GREY,
        # What a token says is not to be read as a formula.
        "text.parse_math": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8, 9), layout="constrained")
        above, middle, below = figure.subplots(3, 1, height_ratios=(3, 4, 3))
        _draw_convergence(figure, above, tokens, decode)
        _draw_orbits(figure, middle, tokens)
        _draw_surprise(below, tokens, _surprises(trace, thread))
        figure.suptitle(f"thread {thread}, positions {tokens[0].position} to {tokens[-1].position}")
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


def _draw_convergence(figure: Figure, axes: Axes, tokens: Sequence[TokenStates], decode: Decode | None) -> None:
    distances = log_distances(tokens)
    axes.set_title("log distance to the last state")
    axes.set_ylabel("iteration")
    labels = [visible(decode((token.token,))) if decode is not None else str(token.token) for token in tokens]
    if len(tokens) <= MOST_LABELS:
        axes.set_xticks(range(len(tokens)), labels, rotation=90)
    else:
        places = range(0, len(tokens), -(-len(tokens) // 10))
        axes.set_xticks(places, [str(tokens[at].position) for at in places])
        axes.set_xlabel("position")
    if not np.isfinite(distances).any():
        axes.text(0.5, 0.5, "one iteration a token: nothing converges", ha="center", transform=axes.transAxes)
        return
    # Iteration 1 stands at the bottom.
    extent = (-0.5, len(tokens) - 0.5, 0.5, distances.shape[1] + 0.5)
    image = axes.imshow(distances.T, aspect="auto", origin="lower", interpolation="nearest", extent=extent)
    _count_whole(axes)
    figure.colorbar(image, ax=axes)


def _draw_orbits(figure: Figure, axes: Axes, tokens: Sequence[TokenStates]) -> None:
    from matplotlib.collections import LineCollection

    axes.set_title("trajectories in the first two principal directions; a dot is the last state")
    drawn = tokens[:: -(-len(tokens) // MOST_ORBITS)]
    placed = principal_coordinates(drawn)
    lines = LineCollection(placed, array=np.array([token.position for token in drawn]), linewidths=0.8, alpha=0.8)
    axes.add_collection(lines)
    last = np.array([points[-1] for points in placed])
    axes.scatter(last[:, 0], last[:, 1], c=[token.position for token in drawn], s=8)
    axes.autoscale()
    figure.colorbar(lines, ax=axes, label="position")


def _draw_surprise(axes: Axes, tokens: Sequence[TokenStates], surprises: dict[int, float]) -> None:
    axes.set_title("depth against surprise: how unlikely the token was that followed")
    axes.set_xlabel("surprise (nats)")
    axes.set_ylabel("iterations")
    points = [(surprises[token.position], token.depth) for token in tokens if token.position in surprises]
    if points:
        nats, depths = zip(*points, strict=True)
        axes.scatter(nats, depths, s=10, alpha=0.6)
    else:
        axes.text(0.5, 0.5, "nothing was sampled here", ha="center", transform=axes.transAxes)
    _count_whole(axes)


def _count_whole(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _surprises(trace: Trace, thread: str) -> dict[int, float]:
    """By position of the token whose state it came from, nats of what was sampled after it."""
    for record in walk_threads(thread_tree(trace.events)):
        if path_name(record.path) == thread:
            context = context_of(record)
            return {
                at - 1: -logprob
                for at, logprob in enumerate(context.logprobs, context.start)
                if logprob is not None and np.isfinite(logprob)
            }
    return {}
