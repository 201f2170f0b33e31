"""Calls of tools: children of a thread that no model drives, and that have no context.

call -> a path and a task of the tree -> the function, or what was recorded of it -> a text, or an error
"""

from __future__ import annotations

from contextlib import suppress

import anyio.lowlevel

from runtime.errors import PromptError, ToolError, described
from runtime.link.commands import ThreadPath
from runtime.link.events import ThreadEnded, ToolCalled, encodable
from runtime.threads.context import Context
from runtime.threads.inbox import AwaitedTool
from runtime.threads.lifetime import Lifetime
from runtime.threads.results import Outcome
from runtime.threads.tool import Tool


class ToolRun:
    """One call, from its beginning to its end; its task runs `run`."""

    def __init__(self, tool: Tool, arguments: str, context: Context, lifetime: Lifetime) -> None:
        """`context` is never opened: it has the path, and what the call is a part of."""
        self._tool = tool
        self._arguments = arguments
        self._context = context
        self._lifetime = lifetime
        self._recorded: AwaitedTool | None = None
        """What was recorded of it, where a trace is played back."""

    @property
    def path(self) -> ThreadPath:
        return self._context.path

    def record_call(self) -> None:
        """Writes it into the trace, behind the event that says who asked for it, or has it answered from one."""
        session = self._context.session
        if session.opened.answers_tools:
            self._recorded = session.inbox.expect_tool(self.path)
        if session.is_recording:
            session.record(ToolCalled(time=0.0, thread=self.path, name=self._tool.name, arguments=self._arguments))

    async def run(self) -> Outcome | None:
        """What it gave; None where it was cancelled. Raises what it failed of, where that is to be raised."""
        seconds = None if self._recorded is not None else self._tool.seconds
        await self._lifetime.enter(seconds)
        text, raised = "", None
        try:
            text = await self._text()
        except BaseException as error:
            raised = error
        is_swallowed, has_run_out, escaped = await self._lifetime.leave(raised)
        self._context.account.end()
        try:
            if has_run_out:
                raised = ToolError(f"{self._tool.name} took longer than {seconds:g} s.")
            elif is_swallowed or escaped is not None:
                self._record_end("cancelled")
                if escaped is not None:
                    raise escaped
                return None
            return self._ended(text, raised)
        finally:
            del raised, escaped

    async def _text(self) -> str:
        if self._recorded is not None:
            return await self._recorded.wait()
        await anyio.lowlevel.checkpoint()
        return await self._tool.call(self._arguments)

    def _ended(self, text: str, error: BaseException | None) -> Outcome:
        """Raises `error`, unless it is to be the result."""
        if isinstance(error, ToolError) and self._tool.errors == "text" and self._recorded is None:
            text, error = f"Error: {str(error).rstrip(' .')}", None
        if error is not None:
            self._record_end("failed", error=described(error))
            raise error
        text = encodable(text)
        self._record_end("returned", text=text)
        return Outcome(self._tokens(text), text, "returned")

    def _tokens(self, text: str) -> tuple[int, ...]:
        """Empty where there is no tokenizer, or one that cannot write the text; whoever appends it is told so."""
        session = self._context.session
        with suppress(PromptError):
            return session.encode_message(text, parse_special_tokens=False)
        return ()

    def _record_end(self, outcome: str, text: str = "", error: str = "") -> None:
        session = self._context.session
        if session.is_recording:
            session.record(ThreadEnded(time=0.0, thread=self.path, outcome=outcome, message=(), text=text, error=error))
