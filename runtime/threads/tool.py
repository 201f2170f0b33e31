"""One tool: an async function, what its arguments may be, and its result as text."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Literal

import msgspec

from policies.conversion import plain, shown
from runtime.errors import ToolError, described

OnToolError = Literal["text", "raise"]
"""Whether what a call fails of is its result, as a text, or raised where the call is joined."""


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that threads call by name. Calls of it run side by side."""

    name: str
    description: str
    parameters: dict[str, Any]
    """JSON schema of its arguments, an object."""
    run: Callable[[str], Awaitable[object]]
    """The call, from its arguments as JSON, once they are checked."""
    check: Callable[[str], None] | None = None
    """Raises `ToolError` for arguments that do not fit; None where any do."""
    seconds: float | None = None
    """That a call may take."""
    errors: OnToolError = "text"

    @property
    def schema(self) -> dict[str, Any]:
        """As chat templates, and clients of the OpenAI API, have it."""
        about = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": about}

    def check_call(self, arguments: str) -> None:
        """Raises `ValueError` where a program's arguments do not fit."""
        if self.check is None:
            return
        try:
            self.check(arguments)
        except ToolError as error:
            raise ValueError(str(error)) from error

    async def call(self, arguments: str) -> str:
        """The result as text: a string as it is, anything else as JSON. Raises `ToolError` for all that goes wrong."""
        if self.check is not None:
            self.check(arguments)
        try:
            result = await self.run(arguments)
        except ToolError:
            raise
        except Exception as error:
            raise ToolError(f"{self.name}: {described(error)}.") from error
        try:
            return result if isinstance(result, str) else msgspec.json.encode(result, enc_hook=plain).decode()
        except Exception as error:
            raise ToolError(f"{self.name} gave {shown(result)}, which is no text and nothing that JSON has.") from error


def tool_of(
    function: Callable[..., Awaitable[object]],
    *,
    name: str | None = None,
    description: str | None = None,
    seconds: float | None = None,
    errors: OnToolError = "text",
) -> Tool:
    """A tool of an async function: named as it is, described by its docstring, with a schema of its type hints.

    Raises `ValueError` for what is no async function, and for parameters without a type hint, with one that has no
    schema, or that cannot be named in a call.
    """
    if not inspect.iscoroutinefunction(function):
        raise ValueError(f"function is {shown(function)}; give an async function.")
    called = name or function.__name__
    arguments = _arguments_of(function, called)
    decoder = msgspec.json.Decoder(arguments)
    try:
        (reference,), components = msgspec.json.schema_components([arguments])
    except TypeError as error:
        raise ValueError(
            f"Tool {called}: {str(error).splitlines()[-1].rstrip('.')}; give its parameters types that JSON has."
        ) from error
    parameters = components.pop(reference["$ref"].rpartition("/")[2])
    del parameters["title"]
    if components:
        parameters["$defs"] = components

    def decoded(text: str) -> msgspec.Struct:
        try:
            made: msgspec.Struct = decoder.decode(text)
        except msgspec.MsgspecError as error:
            raise ToolError(f"{called} cannot be called with {shown(text)}: {error}.") from error
        return made

    def check(text: str) -> None:
        decoded(text)

    async def run(text: str) -> object:
        made = decoded(text)
        return await function(**{field: getattr(made, field) for field in made.__struct_fields__})

    return Tool(
        name=called,
        description=description if description is not None else inspect.getdoc(function) or "",
        parameters=parameters,
        run=run,
        check=check,
        seconds=seconds,
        errors=errors,
    )


def recorded_tool(name: str) -> Tool:
    """A tool that is played back and never run; nobody need have added it."""
    return failing_tool(name, ToolError(f"{name} is no function here; it can only be played back."))


def failing_tool(name: str, error: ToolError) -> Tool:
    """One in the place of what cannot be called: its result says why."""

    async def run(arguments: str) -> object:
        raise error

    return Tool(name=name, description="", parameters={}, run=run)


def arguments_text(name: str, arguments: Mapping[str, object]) -> str:
    """A program's arguments as JSON. Raises `ValueError` for what JSON has not."""
    try:
        return msgspec.json.encode(arguments, enc_hook=plain).decode()
    except Exception as error:
        raise ValueError(f"Tool {name}: its arguments are {shown(arguments)}, which JSON has not ({error}).") from error


def _given(value: object) -> object:
    return value


def _arguments_of(function: Callable[..., object], name: str) -> type[msgspec.Struct]:
    """The arguments of a call as a struct."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:
        raise ValueError(f"Tool {name}: its type hints cannot be read: {described(error)}.") from error
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ValueError(f"Tool {name}: {parameter} has no name in a call; give every parameter one.")
        if parameter.name not in hints:
            raise ValueError(f"Tool {name}: parameter {parameter.name} has no type hint; give it one.")
        hint, default = hints[parameter.name], parameter.default
        if default is parameter.empty:
            fields.append((parameter.name, hint))
        elif default is None or isinstance(default, bool | int | float | str):
            fields.append((parameter.name, hint, default))
        else:
            fields.append((parameter.name, hint, msgspec.field(default_factory=partial(_given, default))))
    try:
        return msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True)
    except Exception as error:
        raise ValueError(f"Tool {name}: {described(error)}.") from error
