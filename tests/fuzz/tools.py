"""Tools that random programs call, and that random models call by accident."""

from __future__ import annotations

import anyio

from runtime import Child, Engine, ReasoningThread, ToolError, ToolTags
from tests.fuzz import program as p

TOOL_TAGS = ToolTags(open="w28", close="w29", tool="quick", argument="text", result="w27 {result}")
"""Of words that random models say now and then."""


async def quick(text: str) -> str:
    """What it gives is a function of the text."""
    return f"w{len(text) % 20}"


async def slow(milliseconds: float) -> str:
    """Takes some time."""
    await anyio.sleep(milliseconds / 1000)
    return "w3 w4"


async def lasting() -> str:
    """Takes longer than most programs wait."""
    await anyio.sleep(0.05)
    return "w5"


async def fails() -> str:
    """Raises."""
    raise ArithmeticError("on purpose")


def add_tools(engine: Engine) -> Engine:
    engine.tools.add(quick)
    engine.tools.add(slow)
    engine.tools.add(slow, name="hurried", seconds=0.001)
    engine.tools.add(lasting)
    engine.tools.add(fails)
    engine.tools.add(fails, name="raises", errors="raise")
    return engine


def start_call(thread: ReasoningThread, action: p.Call) -> Child:
    match action.tool:
        case "quick":
            return thread.call("quick", text="w" * round(action.milliseconds))
        case "slow" | "hurried":
            return thread.call(action.tool, milliseconds=action.milliseconds)
        case name:
            return thread.call(name)


def is_on_purpose(error: BaseException) -> bool:
    return isinstance(error, ToolError) and "on purpose" in str(error)
