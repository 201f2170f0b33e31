"""Serves a checkpoint to clients of the OpenAI API.

python -m runtime.serve CHECKPOINT --port 8000
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from policies import Limits
from runtime.cluster.cluster import Cluster
from runtime.console.command_line import number, output_file, status_of, whole
from runtime.engine import Engine
from runtime.errors import CheckpointError

if TYPE_CHECKING:
    from runtime.serve.settings import ServerSettings

KEYS = "BRAID_API_KEY"
"""The environment variable with the key that clients have to send, or several with commas between them."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.serve",
        description="Serves a checkpoint to clients of the OpenAI API.",
        epilog=f"The environment variable {KEYS} has the key that clients send, or several with commas between them.",
    )
    parser.add_argument("checkpoint", help="a shipped name, a directory, or a GGUF file")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at; by default this machine's own")
    parser.add_argument("--port", type=whole(0, 65535), default=8000, help="0 takes one that is free")
    parser.add_argument("--model", help="the name that clients ask for; by default the checkpoint's")
    parser.add_argument("--replicas", type=whole(1), help="of the model, on Ray; by default one, in this process")
    parser.add_argument("--trace", type=output_file, help="a file that records everything")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--drain", type=whole(0), default=30, help="seconds that answers have at the end")
    parser.add_argument("--max-requests", type=whole(1), default=512, help="that are answered at a time")
    parser.add_argument("--max-waiting", type=whole(0), default=512, help="that wait; more are told to come again")
    parser.add_argument("--max-per-client", type=whole(1), default=512, help="of both, by key or address")
    parser.add_argument("--max-body", type=whole(1), default=2**20, help="bytes of a request")
    parser.add_argument("--max-tokens", type=whole(1), default=65536, help="of all threads of an answer")
    parser.add_argument("--max-threads", type=whole(1), default=4096, help="of an answer")
    parser.add_argument("--max-seconds", type=number(0, above=True), help="of an answer")
    parser.add_argument("--max-priority", type=whole(-1000), default=10, help="that clients may ask for")
    parser.add_argument("--max-context", type=whole(1), help="tokens of a thread")
    parser.add_argument("--kv-cache-bytes", type=whole(1), help="memory for keys and values")
    options = parser.parse_args()
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ImportError("A server needs starlette and others: pip install 'braid-runtime[serve]'.") from error
    if not options.checkpoint:
        raise CheckpointError("The name of the checkpoint is empty; give a name, a directory, or a GGUF file.")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    anyio.run(_serve, options)
    return 0


async def _serve(options: argparse.Namespace) -> None:
    from runtime.serve.application import Application, Observer
    from runtime.serve.listening import bound, listen, server_of
    from runtime.serve.live import LiveTrees

    settings = _settings(options)
    # What cannot be had is known before a model is loaded.
    at = bound(options.host, options.port)
    trees = LiveTrees(settings.most_viewers)
    observer = Observer(trees)
    sizes = {name: value for name in ("max_context", "kv_cache_bytes") if (value := getattr(options, name)) is not None}
    open_engine = Engine.open if options.replicas is None else partial(Cluster.open, replicas=options.replicas)
    engine = open_engine(
        options.checkpoint,
        trace=options.trace,
        seed=options.seed,
        limits=settings.limits,
        observer=observer,
        **sizes,
    )
    with at:
        async with engine:
            observer.engine = engine
            host, port = at.getsockname()[:2]
            where = f"http://{f'[{host}]' if ':' in host else host}:{port}"

            def ready() -> None:
                print(f"{settings.model} is served at {where}", flush=True)

            application = Application(engine, settings, trees)
            await listen(application, server_of(application, settings, options.drain), at, ready)


def _settings(options: argparse.Namespace) -> ServerSettings:
    from runtime.serve.settings import ServerSettings

    return ServerSettings(
        model=options.model or Path(options.checkpoint).name,
        keys=tuple(key.strip() for key in os.environ.get(KEYS, "").split(",") if key.strip()),
        most_requests=options.max_requests,
        most_waiting=options.max_waiting,
        most_per_client=options.max_per_client,
        largest_body=options.max_body,
        highest_priority=options.max_priority,
        limits=Limits(tokens=options.max_tokens, threads=options.max_threads, seconds=options.max_seconds),
    )


if __name__ == "__main__":
    sys.exit(status_of(main))
