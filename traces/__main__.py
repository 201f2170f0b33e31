"""`python -m traces COMMAND FILE`: looks at a trace, runs it again, or makes it a picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from runtime.console import status_of
from traces.commands import export, latents, page, replay, show, simulate, watch, what_if
from traces.commands.reading import OpenDevice, open_recorded

COMMANDS = (show, page, watch, replay, export, latents, what_if, simulate)


def main(arguments: Sequence[str] | None = None, open_device: OpenDevice | None = None) -> int:
    """Runs the command line and returns its exit status; messages go to stderr, results to stdout.

    `open_device` makes the device that a model runs on; without it the checkpoint that the trace names is loaded with
    the settings that the trace has.
    """
    return status_of(partial(_run, arguments, open_device or open_recorded))


def _run(arguments: Sequence[str] | None, open_device: OpenDevice) -> int:
    options = _parser().parse_args(arguments)
    status: int = options.run(options, open_device)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m traces", description="Look at, replay or export a trace.")
    commands = parser.add_subparsers(
        required=True, metavar="|".join(one.__name__.split(".")[-1].replace("_", "-") for one in COMMANDS)
    )
    for command in COMMANDS:
        command.add_to(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
