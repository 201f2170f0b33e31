"""Templates are other people's programs: they are bounded, and their errors say where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from runtime.chat import Renderer
from runtime.errors import CheckpointError, PromptError
from runtime.model.chat_files import ChatTemplate, read_chat_templates
from tests.loops import both_loops

from .templates import user

pytestmark = pytest.mark.anyio

NOW = 0.0


@pytest.fixture
def anyio_backend() -> str:
    """Templates are rendered in a process of their own."""
    return "asyncio"


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source=source, where="a/chat_template.jinja")


async def rendered(source: str, **variables: Any) -> str:
    renderer = Renderer()
    try:
        return (await renderer.render(template(source), [variables], NOW))[0]
    finally:
        await renderer.aclose()


ENDLESS = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 10 ** (10 ** 9) }}",
    "{% if 7 ** (7 ** 9) %}{% endif %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
)
TOO_LARGE = (
    "{{ 'a' * 10 ** 11 }}",
    "{{ 'a' | center(10 ** 11) }}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% for i in range(50000) %}{{ 'a' * 1000 }}{% endfor %}",
)


@pytest.mark.parametrize("source", ENDLESS)
async def test_a_template_without_end_is_ended(source: str) -> None:
    renderer = Renderer(seconds=0.5)
    with pytest.raises(PromptError, match=r"^a/chat_template\.jinja: .* longer than 0\.5 s.*[^.]\.$"):
        await renderer.render(template(source), [{}], NOW)


@both_loops
async def test_the_loop_goes_on_while_a_template_has_no_end() -> None:
    renderer = Renderer()

    async def endless() -> None:
        await renderer.render(template(ENDLESS[1]), [{}], NOW)

    async with anyio.create_task_group() as group:
        group.start_soon(endless)
        assert await rendered("{{ x }}", x="another") == "another"
        group.cancel_scope.cancel()
    # What was cancelled is not taken for the next answer.
    assert await renderer.render(template("{{ x }}"), [{"x": "later"}], NOW) == ["later"]
    await renderer.aclose()


@pytest.mark.parametrize("source", TOO_LARGE)
async def test_a_template_that_would_fill_the_memory_is_refused(source: str) -> None:
    with pytest.raises(PromptError, match=r"^a/chat_template\.jinja(, line 1)?: .*(too much memory|more than \d+)"):
        await rendered(source)


@both_loops
async def test_a_cancelled_rendering_is_not_taken_for_the_next_one() -> None:
    renderer = Renderer()
    with anyio.move_on_after(0.2):
        await renderer.render(template(ENDLESS[0]), [{}], NOW)
    assert await renderer.render(template("{{ x }}"), [{"x": 1}, {"x": "é\udc80\n"}], NOW) == ["1", "é\udc80\n"]
    await renderer.aclose()


@pytest.mark.parametrize(
    ("source", "line", "said"),
    [
        ("a\n{{ raise_exception('Roles must alternate.') }}", 2, "refuses these messages: Roles must alter"),
        ("a\n\n{{ messages[0].content + 1 }}", 3, "TypeError"),
        ("{% macro f() %}\n{{ nothing.at.all }}\n{% endmacro %}\n\n{{ f() }}", 2, "UndefinedError: 'nothing'"),
        ("{{ ''.__class__.__mro__ }}", 1, "SecurityError"),
        ("{{ messages.append(1) }}", 1, "SecurityError"),
        ("{% set n = namespace() %}\n{% set n.__class__ = 1 %}", 2, "SecurityError"),
        ("{{ dict.__init__.__globals__ }}", 1, "SecurityError"),
        ("{% include 'other' %}", 1, "TypeError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", 1, "RecursionError"),
    ],
)
async def test_errors_name_the_file_and_the_line(source: str, line: int, said: str) -> None:
    with pytest.raises(PromptError, match=rf"^a/chat_template\.jinja, line {line}: .*{said}.*[^.]\.$"):
        await rendered(source, messages=[user("hi")])


@both_loops
@pytest.mark.parametrize("source", ["a\n{% if %}", "a\n{{ x", "a\n{% unknown %}"])
async def test_what_is_no_template_is_the_checkpoints_error(source: str) -> None:
    with pytest.raises(CheckpointError, match=r"^a/chat_template\.jinja, line 2: .*no Jinja template.*[^.]\.$"):
        await rendered(source)


async def test_a_template_of_this_kind_has_what_transformers_gives() -> None:
    source = """{%- for x in xs %}
    {%- if x == 2 %}{% continue %}{% endif %}
    {%- generation %}{{ x }}{% if x == 3 %}{% break %}{% endif %}{% endgeneration %}
{%- endfor %}
    {% set y = dict(a=1) %}
{{ y | tojson }} {{ dict.fromkeys('a', 0) }} {{ {'é': '<&>'} | tojson(indent=1) }} {{ strftime_now('%Y') }}
"""
    assert await rendered(source, xs=[1, 2, 3, 4]) == '13{"a": 1} {\'a\': 0} {\n "é": "<&>"\n} 1970'


def write(directory: Path, **files: Any) -> None:
    for name, content in files.items():
        path = directory / name.replace("__", "/").replace("_json", ".json").replace("_jinja", ".jinja")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))


NAMED = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]


@pytest.mark.parametrize(
    ("files", "default", "with_tools"),
    [
        ({"tokenizer_config_json": {"chat_template": "c"}}, "c", "c"),
        ({"tokenizer_config_json": {"chat_template": NAMED}}, "d", "t"),
        ({"tokenizer_config_json": {"chat_template": NAMED}, "chat_template_jinja": "f"}, "f", "f"),
        ({"chat_template_jinja": "f", "additional_chat_templates__tool_use_jinja": "u"}, "f", "u"),
    ],
)
def test_where_templates_are_from(tmp_path: Path, files: dict[str, Any], default: str, with_tools: str) -> None:
    write(tmp_path, **files)
    templates = read_chat_templates(tmp_path)
    assert templates is not None
    assert templates.chosen(tools=False).source == default
    assert templates.chosen(tools=True).source == with_tools


def test_a_directory_without_a_template_has_none(tmp_path: Path) -> None:
    assert read_chat_templates(tmp_path) is None
    write(tmp_path, tokenizer_config_json={})
    assert read_chat_templates(tmp_path) is None
    write(tmp_path, tokenizer_config_json={"chat_template": [{"name": "rag", "template": "r"}]})
    templates = read_chat_templates(tmp_path)
    assert templates is not None
    with pytest.raises(PromptError, match="rag"):
        templates.chosen(tools=False)


@pytest.mark.parametrize("content", [3, {"default": "x"}, [{"name": "default"}], [1]])
def test_a_template_of_another_shape_is_refused_by_its_file(tmp_path: Path, content: Any) -> None:
    write(tmp_path, tokenizer_config_json={"chat_template": content})
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: chat_template is"):
        read_chat_templates(tmp_path)


def test_a_template_that_is_no_text_is_refused_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: not UTF-8"):
        read_chat_templates(tmp_path)
