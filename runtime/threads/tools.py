"""The tools that threads may call."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from policies.conversion import converted, shown
from runtime.threads.tool import OnToolError, Tool, tool_of

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""As clients of the OpenAI API name tools."""

_SECONDS = float | None


class Tools:
    """Tools by name, in the order in which they were added. An engine's are `engine.tools`; a tree may have its own."""

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self._by_name = {tool.name: tool for tool in tools}

    def add(
        self,
        function: Callable[..., Awaitable[object]],
        *,
        name: str | None = None,
        description: str | None = None,
        seconds: float | None = None,
        errors: OnToolError = "text",
    ) -> Tool:
        """Makes an async function a tool, which threads that are open may call as well.

        Its name and description are the function's, and its docstring; the schema of its arguments is made of its
        type hints by msgspec. What it gives is the result: a string as it is, anything else as JSON. `seconds` bounds
        each call. With `errors` "text", what a call fails of (arguments that do not fit, its time, what the function
        raises) is its result, beginning with "Error: "; with "raise" it is a `ToolError` where the call is joined or
        awaited, and ends a thread whose model called.

        Raises `ValueError` for what is no async function, for parameters without a type hint that has a schema, and
        for a name that is taken.
        """
        seconds = converted(seconds, _SECONDS, "seconds")
        if seconds is not None and not seconds >= 0:
            raise ValueError(f"seconds is {seconds!r}; give a number of at least 0, or None for no bound.")
        tool = tool_of(
            function,
            name=converted(name, str | None, "name"),
            description=converted(description, str | None, "description"),
            seconds=seconds,
            errors=converted(errors, OnToolError, "errors"),
        )
        if not _NAME.fullmatch(tool.name):
            raise ValueError(f"name is {shown(tool.name)}; give up to 64 letters, digits, _ and -.")
        if tool.name in self._by_name:
            raise ValueError(f"There is a tool {tool.name} already; give this one another name.")
        self._by_name[tool.name] = tool
        return tool

    def get(self, name: str) -> Tool | None:
        return self._by_name.get(name)

    def named(self, names: Iterable[str]) -> Tools:
        """Some of them. Raises `ValueError` for a name that none has."""
        chosen = list(names)
        for name in chosen:
            if name not in self._by_name:
                raise ValueError(f"There is no tool {shown(name)}; {self.listed}.")
        return Tools(self._by_name[name] for name in dict.fromkeys(chosen))

    @property
    def listed(self) -> str:
        """Which there are, in words."""
        return (
            f"there are {', '.join(self._by_name)}" if self._by_name else "there are none; engine.tools.add() adds them"
        )

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """As chat templates get them."""
        return [tool.schema for tool in self._by_name.values()]

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)
