"""How a model calls tools: what it writes starts calls, and their results go into its context.

a tag closes -> a call, at once -> the thread stops there, at the tag that waits, or with its turn -> results
"""

from __future__ import annotations

from runtime.errors import PromptError, ThreadStateError, ToolError
from runtime.link.commands import Signal, Signalled, Watcher
from runtime.protocol import Both, BoundToolTags
from runtime.threads.child import ChildTask
from runtime.threads.results import Generation
from runtime.threads.running import RunningThread
from runtime.threads.tool import Tool, failing_tool, recorded_tool

Called = tuple[str, ChildTask | str]
"""A tool's name, and its call, or why there is none."""


class ToolUse:
    """The calls of one model-driven thread since its last results."""

    def __init__(self, thread: RunningThread) -> None:
        context = thread.context
        self._thread = thread
        self._context = context
        self._tools = context.settings.tools
        protocol = context.session.opened.protocol
        self._tags: BoundToolTags | None = None if protocol is None else protocol.tools
        self._by_template = False
        """Whether calls are made in the chat template's format, and answered when the model's turn is over."""
        if protocol is None and context.settings.offers_tools:
            self._tags = context.session.chat.tool_tags()
            self._by_template = self._tags is not None
        self._called: list[Called] = []
        self._has_stopped = False

    @property
    def is_possible(self) -> bool:
        """Whether the model can call tools at all."""
        return self._tags is not None

    @property
    def is_in_turns(self) -> bool:
        """Whether results come between the model's turns, so that what it says at last is its last one."""
        return self._by_template

    def watcher(self, own: Watcher | None = None) -> Watcher | None:
        """What the next generate is watched by, beside `own`."""
        self._has_stopped = False
        if self._tags is None:
            return own
        watcher = self._tags.watcher(self._context.tokens, is_in_turns=self._by_template)
        return watcher if own is None else Both(watcher, own)

    def take(self, signal: Signal) -> None:
        """Starts the call of a signal, if it is of one."""
        if signal.kind == "tool":
            self._called.append(self._call(signal.text))
        if signal.kind in ("tool", "results"):
            self._has_stopped = signal.stops

    def take_report(self, report: Signalled) -> None:
        """The same, of a report."""
        self.take(report.signal)

    def is_waiting(self, generation: Generation) -> bool:
        """Whether the thread goes on behind results, after what it has generated last."""
        return self._has_stopped or (self._by_template and bool(self._called) and generation.reason == "stop")

    async def deliver(self) -> bool:
        """Waits for the calls and puts their results behind the context; whether they fit into it.

        Raises what calls failed of, where that is to be raised, and `PromptError` for a result that cannot be encoded.
        """
        called, self._called = self._called, []
        children = [call for _, call in called if isinstance(call, ChildTask)]
        await self._thread.children.collect(children)
        texts = [(name, call if isinstance(call, str) else call.given().text) for name, call in called]
        tokens = await self._put(texts)
        try:
            await self._thread.children.take_results(children, tokens)
        except PromptError:
            return False
        return True

    async def _put(self, texts: list[tuple[str, str]]) -> list[int]:
        context, tags = self._context, self._tags
        if tags is None:
            raise ThreadStateError(f"Thread {context.path} has no way of calling tools.")
        if self._by_template:
            messages = [{"role": "tool", "name": name, "content": text} for name, text in texts]
            return await context.session.chat.answered(context.tokens, messages, context.settings.chat_template_kwargs)
        tokens: list[int] = []
        for name, text in texts:
            tokens += tags.result(name, text, [*context.tokens[-1:], *tokens])
        return tokens

    def _call(self, text: str) -> Called:
        assert self._tags is not None
        try:
            name, arguments = self._tags.written(text)
        except ToolError as error:
            return "", self._start(failing_tool("", error), text)
        if self._context.session.opened.answers_tools:
            return name, self._start(self._tools.get(name) or recorded_tool(name), arguments)
        tool = self._tools.get(name)
        if tool is None:
            tool = failing_tool(name, ToolError(f"There is no tool {name}; {self._tools.listed}."))
        return name, self._start(tool, arguments)

    def _start(self, tool: Tool, arguments: str) -> ChildTask | str:
        refusal = self._context.account.tool_refusal()
        if refusal:
            self._thread.record_spawn(None, (), by_model=True, fork=False, reason=refusal)
            return f"Error: no more tools may be called: {refusal}"
        return self._thread.start_tool(tool, arguments, by_model=True)
