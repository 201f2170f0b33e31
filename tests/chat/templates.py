"""Chat templates in the styles of published models, and small tokenizers that have their tokens."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

from tokenizers import AddedToken
from transformers import AutoTokenizer

from runtime.model.chat_files import ChatTemplates, read_chat_templates
from runtime.model.tokenizer import Tokenizer

from ..vocabularies import byte_fallback, byte_level, metaspace, spaced_byte_level, write_directory

CHATML = """\
{% for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{% endfor %}
{% if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' -}}
{% endif %}
"""

WITH_DEFAULT_SYSTEM = """\
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful AI assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' }}
    {%- generation %}{{- message.content ~ '<|im_end|>' }}{% endgeneration %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

THINKING = """\
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- "\\n" }}{{ tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(last_query=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.last_query = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' %}
        {%- set reasoning = message.reasoning_content if message.reasoning_content is string else '' %}
        {%- if not reasoning and '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if reasoning and loop.index0 > ns.last_query %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

LLAMA_3 = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{%- macro head(role) %}{{- '<|start_header_id|>' ~ role ~ '<|end_header_id|>\\n\\n' }}{% endmacro %}
{{- head('system') + 'Today is ' + strftime_now('%Y') + '\\n\\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
    {{- head(message['role']) + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- head('assistant') }}
{%- endif %}
"""

GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {{ raise_exception('System role not supported') }}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""

MISTRAL = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + message['content'] + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- else %}
        {{- raise_exception('Only user and assistant roles are supported!') }}
    {%- endif %}
{%- endfor %}
"""


class Style(NamedTuple):
    """How one family writes conversations."""

    template: str
    tokens: tuple[str, ...]
    """Special ones beside the tokenizer's own."""
    has_system: bool
    eos: str
    """What ends an answer."""
    plain_tokens: tuple[str, ...] = ()
    """Added tokens that are not special."""


STYLES = {
    "chatml": Style(CHATML, ("<|im_start|>", "<|im_end|>"), True, "<|im_end|>"),
    "default-system": Style(WITH_DEFAULT_SYSTEM, ("<|im_start|>", "<|im_end|>"), True, "<|im_end|>"),
    "thinking": Style(THINKING, ("<|im_start|>", "<|im_end|>"), True, "<|im_end|>", ("<think>", "</think>")),
    "llama-3": Style(LLAMA_3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), True, "<|eot_id|>"),
    "gemma": Style(GEMMA, ("<start_of_turn>", "<end_of_turn>"), False, "<end_of_turn>"),
    "mistral": Style(MISTRAL, ("[INST]", "[/INST]"), False, "</s>"),
}
VOCABULARIES = {kind.__name__: kind for kind in (byte_level, spaced_byte_level, byte_fallback, metaspace)}


@cache
def directory(style: str, vocabulary: str, in_file: bool = True) -> Path:
    """A directory with this tokenizer and template, in a file of its own or in tokenizer_config.json."""
    chosen = STYLES[style]
    inner = VOCABULARIES[vocabulary]()
    inner.add_special_tokens([AddedToken(token, normalized=False) for token in chosen.tokens])
    inner.add_tokens([AddedToken(token, normalized=False) for token in chosen.plain_tokens])
    where = write_directory(Path(mkdtemp()), inner, bos_token="<s>", eos_token="</s>")
    if in_file:
        (where / "chat_template.jinja").write_text(chosen.template)
    else:
        config = json.loads((where / "tokenizer_config.json").read_text())
        (where / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": chosen.template}))
    return where


@cache
def pair(style: str, vocabulary: str) -> tuple[Tokenizer, ChatTemplates, Any]:
    """Ours, and transformers' tokenizer."""
    where = directory(style, vocabulary)
    templates = read_chat_templates(where)
    assert templates is not None
    return Tokenizer.from_file(where / "tokenizer.json"), templates, AutoTokenizer.from_pretrained(where)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}
