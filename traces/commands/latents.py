"""`python -m traces latents`: a figure of the latent states beside a trace."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from runtime import TraceError
from runtime.console import output_file, visible, whole
from runtime.link import latents_path
from traces.commands.reading import OpenDevice, decode_of, read_with_warning, warn_lost
from traces.latent_figure import MOST_TOKENS, latents_svg
from traces.latents import read_latents


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("latents", help="draw the latent states that were recorded beside the trace")
    parser.add_argument("file", type=Path)
    parser.add_argument("--thread", metavar="PATH", help='such as "0.2" (default: the first that has states)')
    parser.add_argument("--first", type=whole(0), default=0, metavar="N", help="position of the first token")
    parser.add_argument(
        "--count", type=whole(1, MOST_TOKENS), default=100, metavar="N", help="most tokens that are drawn"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="as in `show`")
    parser.add_argument(
        "-o", "--output", type=output_file, metavar="FILE", help="default: FILE.latents.svg beside the trace"
    )
    parser.set_defaults(run=partial(_draw, parser))


def _draw(parser: argparse.ArgumentParser, options: argparse.Namespace, open_device: OpenDevice) -> int:
    output = options.output or options.file.with_name(options.file.name + ".latents.svg")
    states = latents_path(options.file)
    if output.resolve() in (options.file.resolve(), states.resolve()):
        parser.error(f"-o/--output is what is read, {output}")
    trace = read_with_warning(options.file)
    latents = read_latents(states)
    if latents.lost is not None:
        warn_lost(states, latents.lost)
    if not latents.threads:
        raise TraceError(f"{states} has no states of any thread.")
    thread = options.thread or latents.threads[0]
    decode = decode_of(options.tokenizer, trace.header)
    figure = latents_svg(trace, latents, thread, options.first, options.count, decode)
    try:
        output.write_text(figure, encoding="utf-8")
    except OSError as error:
        raise TraceError(f"Cannot write {output}: {error.strerror or error}.") from error
    print(f"Wrote {visible(str(output))}, of thread {visible(thread)}.", file=sys.stderr)
    return 0
