"""What command lines and logs share. Names are loaded when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from runtime.console.command_line import FAILED as FAILED
    from runtime.console.command_line import Printer as Printer
    from runtime.console.command_line import input_directory as input_directory
    from runtime.console.command_line import input_file as input_file
    from runtime.console.command_line import number as number
    from runtime.console.command_line import output_directory as output_directory
    from runtime.console.command_line import output_file as output_file
    from runtime.console.command_line import status_of as status_of
    from runtime.console.command_line import whole as whole
    from runtime.console.escaping import escaped_json as escaped_json
    from runtime.console.escaping import visible as visible
    from runtime.console.logs import logger as logger

__getattr__, __dir__ = lazy_exports(__name__)
