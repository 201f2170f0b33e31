"""Chat templates of a checkpoint's directory: which there are, and what they are filled with beside the messages.

Where they are from is as in transformers: `chat_template.jinja` and `additional_chat_templates/*.jinja` come before the
`chat_template` of `tokenizer_config.json`, which is one template, or a list of named ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from runtime.errors import CheckpointError, PromptError
from runtime.model.directories import CHAT_TEMPLATE, CHAT_TEMPLATES, TOKENIZER_CONFIG
from runtime.model.published import holds, is_directory, read_bytes, read_object, shown

DEFAULT, _TOOL_USE = "default", "tool_use"
"""Names of templates."""


class ChatTemplate(msgspec.Struct, frozen=True, kw_only=True):
    """Source of one template, in Jinja. Nothing of it has been looked at."""

    source: str
    where: str
    """The file, and the key in it, for errors."""


class ChatTemplates(msgspec.Struct, frozen=True, kw_only=True):
    """The templates of a checkpoint by name; one that has no name is "default"."""

    by_name: Mapping[str, ChatTemplate]

    def chosen(self, *, tools: bool) -> ChatTemplate:
        """The one for a conversation: "tool_use" where there are tools and it is there, else the default.

        Raises `PromptError` where there are others alone.
        """
        names = [_TOOL_USE, DEFAULT] if tools else [DEFAULT]
        for name in names:
            if name in self.by_name:
                return self.by_name[name]
        first = next(iter(self.by_name.values()))
        raise PromptError(
            f"{first.where}: none of the chat templates {', '.join(sorted(self.by_name))} is the default; call one of "
            f"them {DEFAULT!r}."
        )


def read_chat_templates(directory: Path) -> ChatTemplates | None:
    """The chat templates of a directory; None where there are none.

    Raises `CheckpointError`, naming the file, for one that cannot be read or is not UTF-8, and for a `chat_template`
    of another shape.
    """
    found: dict[str, ChatTemplate] = {}
    files = {DEFAULT: directory / CHAT_TEMPLATE} if holds(directory / CHAT_TEMPLATE) else {}
    if is_directory(directory / CHAT_TEMPLATES):
        files |= {path.stem: path for path in sorted((directory / CHAT_TEMPLATES).glob("*.jinja"))}
    for name, path in files.items():
        try:
            found[name] = ChatTemplate(source=read_bytes(path).decode(), where=str(path))
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path}: not UTF-8 ({error}). Copy the file again, or correct it.") from error
    if not found and holds(directory / TOKENIZER_CONFIG):
        found = _declared(directory / TOKENIZER_CONFIG)
    return ChatTemplates(by_name=found) if found else None


class _Named(msgspec.Struct):
    name: str
    template: str


def _declared(path: Path) -> dict[str, ChatTemplate]:
    declared: Any = read_object(path).get("chat_template")
    if declared is None:
        return {}
    try:
        templates = msgspec.convert(declared, str | list[_Named])
    except msgspec.ValidationError as error:
        raise CheckpointError(
            f"{path}: chat_template is {shown(declared)}; expected a template, or a list of objects with name and "
            f"template."
        ) from error
    if isinstance(templates, str):
        return {DEFAULT: ChatTemplate(source=templates, where=f"{path}, chat_template")}
    return {
        named.name: ChatTemplate(source=named.template, where=f"{path}, chat_template {named.name!r}")
        for named in templates
    }
