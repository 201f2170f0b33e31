"""Renders chat templates as a program of its own: a JSON object a line in, one a line out, until the input ends.

A template is a program that somebody else wrote. Jinja's sandbox keeps it from everything but what it is given; that it
takes no end of time or memory only another process can bound, whose end costs nobody anything. This file is run by its
path and imports Jinja alone, so that it starts at once.

What a template finds is what transformers' `apply_chat_template` gives it (`utils/chat_template_utils.py` there):
`tojson`, `raise_exception`, `strftime_now`, `{% break %}` and `{% continue %}`, `{% generation %}`, and blocks that
leave no white space behind.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from jinja2 import Environment, Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

LARGEST_MEMORY = 2**30
"""Bytes of address space for all of this process, where the system can bound them."""

_SOURCE = "<template>"
"""What Jinja calls a template from a string in tracebacks."""


class Raised(TemplateError):
    """What `raise_exception` raises: the template refuses its messages."""


class TooLarge(Exception):
    pass


class Generation(Extension):
    """`{% generation %}` marks what the assistant says, for trainers: here it is a block like any other."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class PlainNamespace(Namespace):
    """A namespace without names that Python gives a meaning of its own."""

    def __init__(*args: Any, **values: Any) -> None:
        # A template may call a value "self".
        for name in dict(*args[1:], **values):
            _check_name(name)
        Namespace.__init__(*args, **values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace cannot have the attribute {name!r}")


class PlainDict:
    """`dict` in templates, without the rest of the class."""

    def __call__(self, *items: Any, **values: Any) -> dict[Any, Any]:
        return dict(*items, **values)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without the escapes for HTML that Jinja's own filter makes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> None:
    raise Raised(message)


def make_environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals.update(raise_exception=raise_exception, dict=PlainDict(), namespace=PlainNamespace)
    return environment


def clock(now: float) -> Callable[[str], str]:
    """`strftime_now` of a conversation: its day is that on which it began."""
    return lambda form: datetime.fromtimestamp(now).strftime(form)


def rendered(template: Template, variables: Mapping[str, Any], most: int) -> str:
    """Raises `TooLarge` above `most` characters."""
    pieces: list[str] = []
    size = 0
    for piece in template.generate(**variables):
        size += len(piece)
        if size > most:
            raise TooLarge
        pieces.append(piece)
    return "".join(pieces)


def answer(environment: ImmutableSandboxedEnvironment, request: Mapping[str, Any]) -> dict[str, Any]:
    """What goes back for one request: the texts, or what went wrong and in which line of the template."""
    try:
        template = environment.from_string(request["template"], {"strftime_now": clock(request["now"])})
        return {"texts": [rendered(template, each, request["most"]) for each in request["conversations"]]}
    except Raised as error:
        return _failure("refused", str(error.message or ""), error)
    except TemplateSyntaxError as error:
        return {"kind": "syntax", "error": str(error.message), "line": error.lineno}
    except TooLarge as error:
        return _failure("too large", "", error)
    except MemoryError as error:
        return _failure("memory", "", error)
    except Exception as error:
        return _failure("failed", f"{type(error).__name__}: {error}", error)


def _failure(kind: str, message: str, error: BaseException) -> dict[str, Any]:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _SOURCE]
    return {"kind": kind, "error": message[:1000], "line": lines[-1] if lines else None}


def bound_memory() -> None:
    # Windows has no such module, and some systems take no such bound.
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (LARGEST_MEMORY, LARGEST_MEMORY))


def main() -> None:
    bound_memory()
    environment = make_environment()
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(json.dumps(answer(environment, json.loads(line))).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
