"""Logs of the library: structlog events handed to the standard library's loggers, which say nothing by default."""

from __future__ import annotations

import logging
from typing import cast

import structlog


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger under a standard name, such as "runtime.engine".

    Silent until the program sets up `logging`: `logging.basicConfig(level="INFO")` is enough to read it. Leaves
    structlog's own configuration, which belongs to the program, alone.
    """
    standard = logging.getLogger(name)
    if not standard.handlers:
        standard.addHandler(logging.NullHandler())
    return cast(
        structlog.stdlib.BoundLogger,
        structlog.wrap_logger(
            standard,
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.processors.format_exc_info,
                structlog.processors.KeyValueRenderer(key_order=["event"]),
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
        ),
    )
