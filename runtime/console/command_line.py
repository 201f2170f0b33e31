"""What all command lines share: values that are checked as they are read, and one way to end.

parser.add_argument("--rounds", type=whole(1))            # told by the argument's name, before anything is loaded
if __name__ == "__main__": sys.exit(status_of(main))      # told in a line, whatever `main` raises on purpose
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from runtime.console.escaping import visible
from runtime.errors import BraidError

FAILED = 2
INTERRUPTED = 130
"""Exit statuses: arguments or files that cannot be used; ended by the keyboard, as shells count it."""

LARGEST = 2**63 - 1
"""What a count or a seed may be at most, where nothing else bounds it."""

_TOLD = (BraidError, ImportError, MemoryError, OSError, ValueError)
"""Errors that say what is wrong with what was given, rather than with the program."""


# ---- values ---------------------------------------------------------------------------------------------------------


def whole(least: int, most: int = LARGEST) -> Callable[[str], int]:
    """An argparse type: a whole number from `least` to `most`."""
    wanted = f"a whole number of at least {least}" if most == LARGEST else f"a whole number from {least} to {most}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"is {_shown(text)}; give {wanted}") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"is {_shown(text)}; give {wanted}")
        return value

    return read


def number(least: float, most: float = math.inf, *, above: bool = False) -> Callable[[str], float]:
    """An argparse type: a finite number of at least `least` and at most `most`; with `above`, not `least` itself."""
    wanted = f"a number {'above' if above else 'of at least'} {least:g}"
    if most < math.inf:
        wanted += f" and at most {most:g}"

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most) or (above and value == least):
            raise argparse.ArgumentTypeError(f"is {_shown(text)}; give {wanted}")
        return value

    return read


def input_file(text: str) -> Path:
    """An argparse type: a file that can be read. It is not opened: a pipe can be read once only."""
    path = Path(text)
    try:
        path.stat()
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"cannot read {_shown(text)}: {_reason(error)}") from error
    if path.is_dir() or not os.access(path, os.R_OK):
        why = "it is a directory" if path.is_dir() else "not permitted"
        raise argparse.ArgumentTypeError(f"cannot read {_shown(text)}: {why}")
    return path


def input_directory(text: str) -> Path:
    """An argparse type: a directory that is there and can be listed."""
    try:
        with os.scandir(text or "no name"):
            return Path(text)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"cannot read the directory {_shown(text)}: {_reason(error)}") from error


def output_file(text: str) -> Path:
    """An argparse type: a file that can be written, in a directory that is there. Nothing is written yet."""
    path = _named(text)
    if path.is_dir() or text.endswith(os.sep):
        raise argparse.ArgumentTypeError(f"cannot write {_shown(text)}: it is a directory")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"cannot write {_shown(text)}: there is no directory {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write {_shown(text)}: not permitted")
    return path


def output_directory(text: str) -> Path:
    """An argparse type: a directory that is there or can be made. Nothing is made yet."""
    path = _named(text)
    nearest = next((each for each in (path, *path.parents) if each.exists()), Path())
    if not nearest.is_dir():
        raise argparse.ArgumentTypeError(f"cannot write into {_shown(text)}: {nearest} is no directory")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"cannot write into {_shown(text)}: not permitted")
    return path


def _named(text: str) -> Path:
    """Raises `ArgumentTypeError` for what no system takes for a name."""
    path = Path(text)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # what there is above it is looked at where it matters
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"cannot write {_shown(text)}: {_reason(error)}") from error
    if not text:
        raise argparse.ArgumentTypeError("is empty; give a name")
    return path


def _shown(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}...")


class Printer(Console):
    """A rich console on standard output, to which a reader that went away is an error as it is to `print`."""

    def on_broken_pipe(self) -> None:
        raise


# ---- the end --------------------------------------------------------------------------------------------------------


def status_of(main: Callable[[], int]) -> int:
    """Runs a command and returns its exit status, having told on stderr of what it raised.

    Errors that are raised on purpose, alone or in groups, are a line each and `FAILED`; an interruption from the
    keyboard is `INTERRUPTED`. Where the reader of standard output has gone away, such as `head`, there is nobody to
    tell, and the status is 0. Any other exception is a fault of the program and is raised.
    """
    _open_missing_streams()
    try:
        try:
            return main()
        finally:
            _flush()
    except BaseException as error:
        causes = list(_causes(error))
        if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
            print("Interrupted.", file=sys.stderr)
            return INTERRUPTED
        if not all(isinstance(cause, _TOLD) for cause in causes):
            raise
        if all(isinstance(cause, BrokenPipeError) for cause in causes):
            _abandon_output()
            return 0
        for cause in causes:
            told = " ".join((_reason(cause), *getattr(cause, "__notes__", ())))
            print("error:", visible(told), file=sys.stderr)
        return FAILED


def _causes(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _causes(each)
    else:
        yield error


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}." if error.filename is None else f"{error.filename}: {error.strerror}."
    return str(error) or type(error).__name__


def _open_missing_streams() -> None:
    """A stream that the caller has closed is None, to which nothing can be written."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open to the end of the process


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _abandon_output()
        raise


def _abandon_output() -> None:
    """What is still buffered would fail again when the interpreter writes it out at its end."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
