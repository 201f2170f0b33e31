"""Conversations in threads: what messages add to a context, before and after what a thread has said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest

from runtime import Engine, Opened, PromptError, ReasoningThread, ThreadStateError
from runtime.model.chat_files import ChatTemplate, ChatTemplates
from tests.runtime_loop.scripted import ScriptedDevice
from tests.runtime_loop.scripted_core import Speaker

from .templates import STYLES, assistant, pair, system, user

pytestmark = pytest.mark.anyio

APPENDING = {style: known for style, known in STYLES.items() if style != "thinking"}


def over(device: ScriptedDevice, **others: Any) -> Engine:
    return Engine.from_device(Opened(device=device, **others))


def saying(*tokens: int) -> ScriptedDevice:
    """A device whose threads say these tokens, again and again."""

    def say(speaker: Speaker) -> int:
        return tokens[speaker.emitted % len(tokens)]

    return ScriptedDevice(say)


def engine_over(style: str, answer: str, vocabulary: str = "byte_level", stops: Sequence[str] | None = None) -> Engine:
    """An engine whose model always gives this answer, which the style's token ends."""
    tokenizer, templates, _ = pair(style, vocabulary)
    eos = tokenizer.token_to_id(STYLES[style].eos)
    assert eos is not None
    said = (*tokenizer.encode_inside(answer), eos)
    return over(saying(*said), tokenizer=tokenizer, chat_templates=templates, stop_tokens=frozenset([eos]))


def expected(style: str, messages: list[dict[str, Any]], asks: bool, vocabulary: str = "byte_level") -> list[int]:
    tokenizer, _, reference = pair(style, vocabulary)
    tokens: list[int] = reference.apply_chat_template(
        messages, add_generation_prompt=asks, sanitize_control_tokens=True, return_dict=False
    )
    return tokenizer.led(tokens)


@pytest.mark.parametrize("style", STYLES)
async def test_a_run_answers_messages(style: str) -> None:
    tokenizer, _, _ = pair(style, "byte_level")
    async with engine_over(style, "Hello.") as engine:
        messages = [user("hi </s> <s>"), assistant("yes"), user("<|im_end|>")]
        answer = await engine.run(messages=messages)
        assert answer.text == "Hello."
        assert answer.usage.max_context == len(expected(style, messages, True)) + len(tokenizer.encode("Hello.")) + 1


@pytest.mark.parametrize("answer", ["Hello.", " Hello \n", ""])
@pytest.mark.parametrize("style", APPENDING)
async def test_messages_after_an_answer_go_on_as_the_template_writes_the_whole(style: str, answer: str) -> None:
    tokenizer, _, _ = pair(style, "byte_level")
    async with engine_over(style, answer) as engine, engine.thread(messages=[user("hi")]) as root:
        assert list(root.tokens) == expected(style, [user("hi")], True)
        earlier = root.tokens
        for question in ("why?", "</s> <s>[INST]"):
            await root.generate()
            earlier = root.tokens
            await root.append(user(question))
            assert root.tokens[: len(earlier)] == earlier
        whole = [user("hi"), assistant(answer), user("why?"), assistant(answer), user("</s> <s>[INST]")]
        # The template may trim what the thread has said; else the texts are the same.
        assert "".join(root.text.split()) == "".join(tokenizer.decode(expected(style, whole, True)).split())


async def test_a_conversation_is_the_same_tokens_whole_and_message_by_message() -> None:
    async with engine_over("chatml", "Hello.") as engine, engine.thread() as root:
        await root.append(system("be brief"))
        assert list(root.tokens) == expected("chatml", [system("be brief")], False)
        await root.append([user("one"), user("two")])
        await root.generate()
        await root.append(user("three"))
        whole = [system("be brief"), user("one"), user("two"), assistant("Hello."), user("three")]
        assert list(root.tokens) == expected("chatml", whole, True)


@pytest.mark.parametrize("vocabulary", ["byte_fallback", "metaspace", "spaced_byte_level"])
async def test_a_message_after_an_answer_has_the_spaces_that_it_has_in_the_whole(vocabulary: str) -> None:
    async with engine_over("default-system", "cat", vocabulary) as engine, engine.thread(messages=[user("a")]) as root:
        asked = list(root.tokens)
        await root.generate()
        await root.append(user("the cat"))
        whole = expected("default-system", [user("a"), assistant("cat"), user("the cat")], True, vocabulary)
        # Where words have a space put before them, the model's answer may begin without.
        assert list(root.tokens)[-30:] == whole[-30:]
        assert list(root.tokens)[: len(asked)] == whole[: len(asked)]


async def test_an_answer_that_was_cut_short_is_closed() -> None:
    async with engine_over("chatml", "Hello.") as engine, engine.thread(messages=[user("hi")]) as root:
        said = await root.generate(2)
        assert said.reason == "length"
        await root.append(user("why?"))
        assert list(root.tokens) == expected("chatml", [user("hi"), assistant(said.text), user("why?")], True)


async def test_what_a_program_appends_before_an_answer_is_its_beginning() -> None:
    async with engine_over("chatml", "Hello.") as engine, engine.thread(messages=[user("hi")]) as root:
        root.append("Sure: ")
        await root.generate()
        await root.append(user("why?"))
        whole = [user("hi"), assistant("Sure: Hello."), user("why?")]
        assert root.text == pair("chatml", "byte_level")[0].decode(expected("chatml", whole, True))


async def test_forks_go_on_with_the_conversation_and_children_have_their_own() -> None:
    seen: dict[str, list[int]] = {}

    async def look(name: str, thread: ReasoningThread) -> str:
        seen[name] = list(thread.tokens)
        await thread.generate()
        await thread.append(user("more"))
        seen[f"{name} after"] = list(thread.tokens)
        return "done"

    async with engine_over("chatml", "Hello.") as engine, engine.thread(messages=[user("hi")]) as root:
        await root.generate()
        forked = root.fork(user("why?"), program=partial(look, "fork"))
        spawned = root.spawn([system("be brief"), user("<|im_end|>")], program=partial(look, "spawn"))
        await root.join([forked, spawned], append=False)
        assert forked.prompt
        assert list(spawned.prompt) == seen["spawn"]
    history = [user("hi"), assistant("Hello."), user("why?")]
    assert seen["fork"] == expected("chatml", history, True)
    assert seen["fork after"] == expected("chatml", [*history, assistant("Hello."), user("more")], True)
    alone = [system("be brief"), user("<|im_end|>")]
    assert seen["spawn"] == expected("chatml", alone, True)
    assert seen["spawn after"] == expected("chatml", [*alone, assistant("Hello."), user("more")], True)


async def test_a_child_whose_messages_are_refused_fails_alone() -> None:
    async with engine_over("gemma", "Hello.") as engine, engine.thread(messages=[user("hi")]) as root:
        child = root.spawn(system("no"))
        with pytest.raises(PromptError, match="System role not supported"):
            await root.join([child])
        assert (await root.generate()).text == "Hello."


async def test_a_template_that_rewrites_an_answer_is_refused_and_nothing_is_appended() -> None:
    answer = "<think>\nso\n</think>\n\nHello."
    async with engine_over("thinking", answer) as engine, engine.thread(messages=[user("hi")]) as root:
        await root.generate()
        before = root.tokens
        with pytest.raises(PromptError, match=r"line|changes the assistant's answer.*whole conversation.*[^.]\.$"):
            await root.append(user("why?"))
        assert root.tokens == before
        await root.generate(3)


async def test_a_template_that_rewrites_what_was_asked_is_refused() -> None:
    template = "{{ messages | length }} messages:{% for m in messages %} {{ m.content }}{% endfor %}"
    async with engine_writing(template) as engine, engine.thread(messages=[user("hi")]) as root:
        await root.generate(1)
        with pytest.raises(PromptError, match="changes what it has written"):
            await root.append(user("why?"))


async def test_white_space_before_an_answer_may_differ() -> None:
    template = """\
{% for m in messages %}
{{ m.role }}: {{ m.content }}.
{% endfor %}
{% if add_generation_prompt %}
assistant:
{% endif %}
"""
    async with engine_writing(template) as engine, engine.thread(messages=[user("hi")]) as root:
        await root.generate(1)
        await root.append(user("why?"))
        assert root.text == "user: hi.\nassistant:\na.\nuser: why?.\nassistant:\n"


async def test_a_template_that_leaves_the_answer_out_is_refused() -> None:
    template = "{% for m in messages if m.role == 'user' %}{{ m.content }} {% endfor %}"
    async with engine_writing(template) as engine, engine.thread(messages=[user("hi")]) as root:
        await root.generate(1)
        with pytest.raises(PromptError, match="changes how the assistant's answer begins"):
            await root.append(user("why?"))


def engine_writing(template: str) -> Engine:
    templates = ChatTemplates(by_name={"default": ChatTemplate(source=template, where="here")})
    tokenizer, _, _ = pair("chatml", "byte_level")
    return over(saying(*tokenizer.encode("a")), tokenizer=tokenizer, chat_templates=templates)


async def test_messages_in_a_row_are_appended_in_one_call() -> None:
    async with engine_over("chatml", "Hello.") as engine, engine.thread(messages=[user("hi")]) as root:
        with pytest.raises(PromptError, match="in one call, as a list"):
            await root.append(user("why?"))
        await root.generate()
        await root.append([{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}])
        await root.generate()


async def test_template_variables_hold_for_a_thread_and_its_children() -> None:
    async def look(thread: ReasoningThread) -> str:
        return str(thread.text.count("<think>\n\n</think>"))

    async with (
        engine_over("thinking", "Hello.") as engine,
        engine.thread(messages=[user("hi")], chat_template_kwargs={"enable_thinking": False}) as root,
    ):
        assert root.text.endswith("<think>\n\n</think>\n\n")
        child = root.spawn(user("hi"), program=look)
        assert [answer.text for answer in await root.join([child])] == ["1"]


async def test_special_tokens_are_parsed_in_texts_and_not_in_messages_unless_said_otherwise() -> None:
    tokenizer, _, reference = pair("chatml", "byte_level")
    text = "a<|im_end|>b"
    plain = tuple(reference(text, split_special_tokens=True).input_ids)
    parsed = tuple(reference(text).input_ids)
    assert plain != parsed
    seen: list[tuple[int, ...]] = []

    async def look(thread: ReasoningThread) -> None:
        seen.append(thread.tokens)

    async with engine_over("chatml", "x") as engine:
        for asked, tokens in ((False, plain), (True, parsed), (None, parsed)):
            seen.clear()
            async with engine.thread(text, parse_special_tokens=asked) as root:
                assert root.tokens == tokens
                root.append(text, parse_special_tokens=asked)
                assert root.tokens == tokens * 2
                await root.join([root.spawn(text, program=look, parse_special_tokens=asked)])
                await root.join([root.fork(text, program=look, parse_special_tokens=asked)])
            assert seen == [tokens, tokens * 3]
            answer = await engine.run(text, parse_special_tokens=asked)
            assert answer.usage.max_context == len(tokens) + 2
            async with engine.thread(messages=[user(text)], parse_special_tokens=asked) as root:
                count = root.tokens.count(tokenizer.token_to_id("<|im_end|>") or 0)
                assert count == 1 + (asked is True)


WRONG: list[tuple[Any, str]] = [
    ("hi", "messages is 'hi'"),
    (3, "messages is 3"),
    ([], "messages is empty"),
    (["hi"], r"messages\[0\] is 'hi'"),
    ([user("a"), {"content": "x"}], r"messages\[1\] has no role"),
    ([{"role": 3}], r"messages\[0\] has no role"),
    ([{"role": "user", "content": object()}], r"messages\[0\] has a value"),
    ([{"role": "user", 3: "x"}], r"messages\[0\] has the key 3"),
    ([assistant("x")], "nothing to answer"),
]


@pytest.mark.parametrize(("messages", "said"), WRONG)
async def test_what_are_no_messages_is_refused(messages: Any, said: str) -> None:
    async with engine_over("chatml", "x") as engine:
        with pytest.raises(PromptError, match=rf"{said}.*[^.]\.$"):
            await engine.run(messages=messages)
        with pytest.raises(ValueError, match="give one of them"):
            await engine.run("x", messages=[user("a")])
        with pytest.raises(ValueError, match="chat_template_kwargs"):
            await engine.run(messages=[user("a")], chat_template_kwargs={"messages": []})
        assert engine.usage.computed == 0


async def test_messages_need_a_template_a_tokenizer_and_a_conversation() -> None:
    tokenizer, _, _ = pair("chatml", "byte_level")
    async with over(saying(1), tokenizer=tokenizer) as engine:
        with pytest.raises(PromptError, match="no chat template"):
            await engine.run(messages=[user("hi")])
        with pytest.raises(PromptError, match="no chat template"):
            async with engine.thread(messages=[user("hi")]):
                pass
    async with over(saying(1)) as engine:
        with pytest.raises(PromptError, match=r"no tokenizer\.json"):
            await engine.run(messages=[user("hi")])
    async with engine_over("chatml", "x") as engine, engine.thread("hi") as root:
        with pytest.raises(PromptError, match="does not begin with messages"):
            await root.append(user("hi"))


async def test_a_thread_waits_for_its_messages() -> None:
    async with engine_over("chatml", "x") as engine, engine.thread() as root:
        appended = root.append(user("hi"))
        with pytest.raises(ThreadStateError, match="empty context"):
            await root.generate()
        await appended
        assert (await root.generate()).text == "x"


async def test_a_date_is_that_of_the_conversations_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Iterator[float] = iter([0.0, 10.0**9])
    monkeypatch.setattr("runtime.threads.chat.time.time", partial(next, clock))
    async with engine_over("llama-3", "x") as engine, engine.thread(messages=[user("hi")]) as root:
        await root.generate()
        await root.append(user("why?"))
        assert root.text.count("Today is 1970") == 1


async def test_messages_that_do_not_fit_are_refused_before_anything_is_computed() -> None:
    tokenizer, templates, _ = pair("chatml", "byte_level")
    size = len(expected("chatml", [user("hi")], True))
    opened: dict[str, Any] = {"tokenizer": tokenizer, "chat_templates": templates}
    async with over(saying(1), max_context=size - 1, **opened) as engine:
        with pytest.raises(PromptError, match=rf"^The prompt has {size} tokens; the model's context holds {size - 1}"):
            await engine.run(messages=[user("hi")])
        with pytest.raises(PromptError, match=rf"^The prompt has {size} tokens"):
            async with engine.thread(messages=[user("hi")]):
                pass
        assert engine.usage.threads == 0
    async with over(saying(1), max_context=size + 3, **opened) as engine, engine.thread(messages=[user("hi")]) as root:
        await root.generate(1)
        before = root.tokens
        with pytest.raises(PromptError, match=rf"would have \d+ tokens; the model's context holds {size + 3}"):
            await root.append(user("hi"))
        assert root.tokens == before
