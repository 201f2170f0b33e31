"""What command lines and logs share. Names are loaded when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.console.command_line import (
        FAILED,
        Printer,
        input_directory,
        input_file,
        number,
        output_directory,
        output_file,
        status_of,
        whole,
    )
    from runtime.console.escaping import escaped_json, visible
    from runtime.console.logs import logger

_HOMES = {
    "command_line": (
        "FAILED",
        "Printer",
        "input_directory",
        "input_file",
        "number",
        "output_directory",
        "output_file",
        "status_of",
        "whole",
    ),
    "logs": ("logger",),
    "escaping": ("escaped_json", "visible"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "FAILED",
    "Printer",
    "escaped_json",
    "input_directory",
    "input_file",
    "logger",
    "number",
    "output_directory",
    "output_file",
    "status_of",
    "visible",
    "whole",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'runtime.console' has no attribute {name!r}")
    value: object = getattr(import_module(f"runtime.console.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
