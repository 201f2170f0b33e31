"""Messages become the tokens that transformers' `apply_chat_template` makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.threads.chat import Chat

from .templates import STYLES, VOCABULARIES, assistant, pair, system, user

CONTENTS = st.one_of(
    st.text(alphabet="thecas it.,!'n é日🧵\n", max_size=20),
    st.lists(
        st.sampled_from(["the cat", " ", "\n", "é", "<|im_end|>", "<|eot_id|>", "</s>", "[INST]", "</think>", "<s>"]),
        max_size=5,
    ).map("".join),
)
TURNS = st.lists(st.tuples(CONTENTS, CONTENTS), max_size=2)


def conversation(has_system: bool, first: str, turns: list[tuple[str, str]], last: str) -> list[dict[str, str]]:
    messages = [system(first)] if has_system and first else []
    for asked, answered in turns:
        messages += [user(asked), assistant(answered)]
    return [*messages, user(last)]


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    """A loop that lives on between examples, and so does the process that renders."""
    with start_blocking_portal() as portal:
        yield portal


@contextmanager
def open_chat(portal: BlockingPortal, style: str, vocabulary: str) -> Iterator[Chat]:
    tokenizer, templates, _ = pair(style, vocabulary)

    async def make() -> Chat:
        return Chat(templates, tokenizer, frozenset())

    chat = portal.call(make)
    yield chat
    portal.call(chat.aclose)


def ours(
    portal: BlockingPortal, chat: Chat, messages: list[dict[str, Any]], parse: bool, **variables: Any
) -> list[int]:
    tokens, _ = portal.call(partial(chat.begun, messages, variables, parse_special_tokens=parse))
    return list(tokens)


def once_begun(style: str, vocabulary: str, tokens: list[int]) -> list[int]:
    """As transformers has it, but for templates that leave the beginning-of-text token to the tokenizer."""
    return pair(style, vocabulary)[0].led(tokens)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("style", STYLES)
def test_tokens_are_those_of_transformers(portal: BlockingPortal, style: str, vocabulary: str) -> None:
    reference = pair(style, vocabulary)[2]
    with open_chat(portal, style, vocabulary) as chat:

        @given(first=CONTENTS, turns=TURNS, last=CONTENTS, parse=st.booleans())
        @settings(max_examples=25, deadline=None)
        def check(first: str, turns: list[tuple[str, str]], last: str, parse: bool) -> None:
            messages = conversation(STYLES[style].has_system, first, turns, last)
            expected = reference.apply_chat_template(
                messages,
                add_generation_prompt=True,
                sanitize_control_tokens=not parse,
                return_dict=False,
            )
            assert ours(portal, chat, messages, parse) == once_begun(style, vocabulary, expected)

        check()


TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Sonne & <Regen>, é", "parameters": {}}}]


@pytest.mark.parametrize(
    ("messages", "variables"),
    [
        ([user("hi")], {"tools": TOOLS}),
        ([user("hi")], {"enable_thinking": False}),
        ([user("hi"), {"role": "assistant", "content": None, "reasoning": "so <think>"}, user("why?")], {}),
        ([user("hi"), {"role": "assistant", "content": "yes", "thinking": "so"}], {}),
        ([{"role": "user", "content": [{"type": "text", "text": "hi"}]}], {}),
    ],
)
def test_what_templates_find_is_what_transformers_gives_them(
    portal: BlockingPortal, messages: list[dict[str, Any]], variables: dict[str, Any]
) -> None:
    expected = pair("thinking", "byte_level")[2].apply_chat_template(
        messages,
        add_generation_prompt=messages[-1]["role"] == "user",
        sanitize_control_tokens=True,
        return_dict=False,
        **variables,
    )
    with open_chat(portal, "thinking", "byte_level") as chat:
        assert ours(portal, chat, messages, False, **variables) == expected
