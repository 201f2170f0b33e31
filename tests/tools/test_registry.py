"""Functions become tools: names, schemas, and what is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from runtime import ToolError, Tools

pytestmark = pytest.mark.anyio


class Place(msgspec.Struct):
    city: str
    country: str = "France"


async def weather(
    place: Place, day: Annotated[int, Meta(ge=0, description="From today on")] = 0, *, unit: Literal["C", "F"] = "C"
) -> dict[str, Any]:
    """The weather somewhere."""
    return {"city": place.city, "day": day, "unit": unit}


async def test_the_schema_is_made_of_type_hints() -> None:
    tools = Tools()
    tool = tools.add(weather)
    assert tools.schemas == [tool.schema]
    assert tool.schema == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather somewhere.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"$ref": "#/$defs/Place"},
                    "day": {"type": "integer", "minimum": 0, "description": "From today on", "default": 0},
                    "unit": {"enum": ["C", "F"], "default": "C"},
                },
                "required": ["place"],
                "additionalProperties": False,
                "$defs": {
                    "Place": {
                        "title": "Place",
                        "type": "object",
                        "properties": {"city": {"type": "string"}, "country": {"type": "string", "default": "France"}},
                        "required": ["city"],
                    }
                },
            },
        },
    }
    assert await tool.call('{"place": {"city": "Paris"}, "unit": "F"}') == '{"city":"Paris","day":0,"unit":"F"}'


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "[1]",
        '{"day": 1}',
        '{"place": {"city": "Paris"}, "day": -1}',
        '{"place": "Paris"}',
        '{"place": {"city": 1}}',
    ],
)
async def test_arguments_that_do_not_fit_are_told(arguments: str) -> None:
    with pytest.raises(ToolError, match="weather cannot be called with"):
        await Tools().add(weather).call(arguments)


async def test_results_are_text_or_json() -> None:
    async def nothing() -> None:
        """Gives nothing."""

    async def strange() -> object:
        return object()

    tools = Tools()
    assert await tools.add(nothing).call("{}") == "null"
    with pytest.raises(ToolError, match="which is no text and nothing that JSON has"):
        await tools.add(strange).call("{}")


def test_what_is_no_tool_is_refused() -> None:
    tools = Tools()
    tools.add(weather)
    assert [tool.name for tool in tools.named(["weather"])] == ["weather"]

    def plain() -> int:
        return 1

    async def untyped(x) -> int:  # type: ignore[no-untyped-def]
        return 1

    async def many(*values: int) -> int:
        return 1

    async def odd(x: type[int]) -> int:
        return 1

    for function, why in ((plain, "async function"), (1, "async function"), (untyped, "no type hint")):
        with pytest.raises(ValueError, match=why):
            tools.add(function)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no name in a call"):
        tools.add(many)
    with pytest.raises(ValueError, match=r"odd.*give its parameters types that JSON has"):
        tools.add(odd)
    with pytest.raises(ValueError, match="There is a tool weather already"):
        tools.add(weather)
    with pytest.raises(ValueError, match="name is 'a b'"):
        tools.add(weather, name="a b")
    with pytest.raises(ValueError, match="seconds is -1"):
        tools.add(weather, name="w", seconds=-1)
    with pytest.raises(ValueError, match="errors"):
        tools.add(weather, name="w", errors="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="There is no tool 'sun'; there are weather"):
        tools.named(["sun"])
