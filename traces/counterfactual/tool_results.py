"""Tools of a run that asks again: what was recorded is given where a call is equal, and nothing else is made up."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from functools import partial
from typing import Any

import msgspec

from runtime import Tool, ToolError, Tools
from traces.tree import ThreadRecord, walk_threads

Call = tuple[str, str]
"""A name, and arguments in a form that equal ones have."""


class RecordedTools(Tools):
    """The tools of one question. A call that its recorded tree made gives what it gave then; where there were several
    equal ones, in their order, and the last one's for any more. Another is run by `given` tools; where these have none
    of its name it is refused, with a `ToolError` that ends its thread."""

    def __init__(self, root: ThreadRecord, given: Tools, names: Iterable[str]) -> None:
        """`names` are of tools that were called, here or elsewhere."""
        recorded = {name: self._tool(name, None) for name in names}
        super().__init__({**recorded, **{tool.name: self._tool(tool.name, tool) for tool in given}}.values())
        self._results: defaultdict[Call, deque[ThreadRecord]] = defaultdict(deque)
        for record in walk_threads([root]):
            if record.tool is not None and record.outcome in ("returned", "failed"):
                self._results[record.tool.name, _canonical(record.tool.arguments)].append(record)

    def get(self, name: str) -> Tool:
        return super().get(name) or self._tool(name, None)

    def _tool(self, name: str, own: Tool | None) -> Tool:
        run = partial(self._recorded, own, name)
        if own is not None:
            return msgspec.structs.replace(own, run=run, check=None)
        return Tool(name=name, description="", parameters={}, run=run, errors="raise")

    async def _recorded(self, own: Tool | None, name: str, arguments: str) -> object:
        results = self._results.get((name, _canonical(arguments)))
        if results:
            result = results.popleft() if len(results) > 1 else results[0]
            if result.outcome == "failed":
                raise ToolError(result.error.removeprefix("ToolError: "))
            return result.text
        if own is None:
            raise ToolError(f"{name} was not called with {arguments} then; give the tool, so that it is run.")
        return await own.call(arguments)


def called_tools(roots: Iterable[ThreadRecord]) -> list[str]:
    """The names of tools that were called."""
    names = (record.tool.name for record in walk_threads(roots) if record.tool is not None)
    return list(dict.fromkeys(names))


def _canonical(arguments: str) -> str:
    """What is equal for arguments that differ in white space and order alone; a text that is no JSON is itself."""
    try:
        value: Any = msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return arguments
    return msgspec.json.encode(value, order="deterministic").decode()
